//! Reads uncompressed rows of pixels, in the layouts that Pillow calls raw modes.
//!
//! Source: `RawDecode.c` and `Unpack.c` of Pillow.

use std::ops::Range;

use crate::ImageError;
use crate::decode::Input;
use crate::raster::{Palette, Pixels};

/// The layout of a pixel in its row. Each comment below begins with Pillow's names of the raw modes, unless a variant
/// covers many raw modes. Names such as `BGRX` list the bytes in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `1`: one bit (1 is white), highest bit first.
    Bit,
    /// `1;I`: one bit (1 is black), highest bit first.
    BitInverted,
    /// `P;1`, `P;4` and `P`: a palette index of 1, 4 or 8 bits, highest bits first.
    Index(u8),
    /// `L`: one byte of grey.
    Grey,
    /// `LA`: one byte of grey and one byte of alpha.
    GreyAlpha,
    /// One byte per channel: the offsets of red, green and blue in a pixel, and the number of bytes per pixel.
    Rgb([u8; 3], u8),
    /// Four bytes per pixel: the offsets of red, green, blue and alpha.
    Rgba([u8; 4]),
    /// `BGR;15`: 16-bit words with five bits per channel.
    Bgr15,
    /// `BGR;16`: 16-bit words with five, six and five bits.
    Bgr16,
    /// `BGRA;15Z`: 16-bit words with five bits per channel; if the highest bit is set, the pixel is transparent.
    Bgra15,
}

impl Layout {
    pub(crate) const RGB: Self = Self::Rgb([0, 1, 2], 3);
    pub(crate) const BGR: Self = Self::Rgb([2, 1, 0], 3);
    pub(crate) const BGRX: Self = Self::Rgb([2, 1, 0], 4);
    pub(crate) const BGRA: Self = Self::Rgba([2, 1, 0, 3]);

    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::Bit | Self::BitInverted => 1,
            Self::Index(bits) => bits,
            Self::Grey => 8,
            Self::GreyAlpha | Self::Bgr15 | Self::Bgr16 | Self::Bgra15 => 16,
            Self::Rgb(_, bytes) => 8 * bytes,
            Self::Rgba(_) => 32,
        }
    }

    /// Returns the length of a row without padding, in bytes.
    pub(crate) fn row_bytes(self, width: u32) -> usize {
        (width as usize * usize::from(self.bits())).div_ceil(8)
    }

    /// Returns the number of bytes per unpacked pixel.
    pub(crate) fn unpacked_bytes(self) -> u64 {
        match self {
            Self::Bit | Self::BitInverted | Self::Index(_) | Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb(..) | Self::Bgr15 | Self::Bgr16 => 3,
            Self::Rgba(_) | Self::Bgra15 => 4,
        }
    }

    /// Unpacks a row of `width` pixels and appends them to `out`.
    fn unpack_row(self, row: &[u8], width: usize, out: &mut Vec<u8>) {
        let words = || row.as_chunks::<2>().0.iter().map(|&word| u16::from_le_bytes(word));
        let five = |word: u16, shift: u16| scale(word >> shift & 31, 31);
        match self {
            Self::Bit => out.extend((0..width).map(|x| if row[x / 8] << (x % 8) & 0x80 != 0 { 255 } else { 0 })),
            Self::BitInverted => {
                out.extend((0..width).map(|x| if row[x / 8] << (x % 8) & 0x80 != 0 { 0 } else { 255 }))
            }
            Self::Index(8) | Self::Grey | Self::GreyAlpha | Self::RGB => out.extend_from_slice(row),
            Self::Index(bits) => {
                let bits = usize::from(bits);
                out.extend((0..width).map(|x| (row[x * bits / 8] << (x * bits % 8)) >> (8 - bits)));
            }
            Self::Rgb(places, bytes) => {
                for pixel in row.chunks_exact(bytes.into()) {
                    out.extend(places.map(|at| pixel[usize::from(at)]));
                }
            }
            Self::Rgba(places) => {
                for pixel in row.chunks_exact(4) {
                    out.extend(places.map(|at| pixel[usize::from(at)]));
                }
            }
            Self::Bgr15 => words().for_each(|word| out.extend([five(word, 10), five(word, 5), five(word, 0)])),
            Self::Bgr16 => {
                words().for_each(|word| out.extend([five(word, 11), scale(word >> 5 & 63, 63), five(word, 0)]));
            }
            Self::Bgra15 => words().for_each(|word| {
                let alpha = if word >> 15 == 1 { 0 } else { 255 };
                out.extend([five(word, 10), five(word, 5), five(word, 0), alpha]);
            }),
        }
    }

    /// Converts unpacked samples to [`Pixels`] without copying them. `palette` is used only for palette indices.
    pub(crate) fn pixels(self, samples: Vec<u8>, palette: Option<Palette>) -> Pixels {
        match self {
            Self::Bit | Self::BitInverted | Self::Grey => Pixels::Grey(samples),
            Self::Index(_) => Pixels::Indexed(samples, palette.unwrap_or(Palette::new([]))),
            Self::GreyAlpha => Pixels::GreyAlpha(samples),
            Self::Rgb(..) | Self::Bgr15 | Self::Bgr16 => Pixels::Rgb(samples),
            Self::Rgba(_) | Self::Bgra15 => Pixels::Rgba(samples),
        }
    }
}

/// Scales a value in the range 0 to `max` to 8 bits and rounds it down.
fn scale(value: u16, max: u16) -> u8 {
    (value * 255 / max) as u8
}

/// Approximate number of bytes of the file that are unpacked at a time.
const BAND_BYTES: usize = 256 << 10;

/// A description of uncompressed rows in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) layout: Layout,
    /// Distance between the starts of two rows, in bytes.
    pub(crate) stride: usize,
    pub(crate) is_bottom_up: bool,
}

impl Rows {
    /// Unpacks all rows from `data`, top row first. The last row may lack its padding.
    ///
    /// # Errors
    /// If there are too few bytes.
    pub(crate) fn unpack(self, data: &[u8], input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
        input.check_memory(self.layout.unpacked_bytes() * u64::from(self.width) * u64::from(self.height))?;
        self.unpack_rows(0..self.height as usize, data, input)
    }

    /// Like [`Self::unpack`], but passes the rows to `take` in bands, from the top.
    ///
    /// # Errors
    /// If there are too few bytes. `take` may have received some rows by then.
    pub(crate) fn unpack_bands(
        self,
        data: &[u8],
        input: &Input<'_>,
        mut take: impl FnMut(Vec<u8>),
    ) -> Result<(), ImageError> {
        let height = self.height as usize;
        let band = (BAND_BYTES / self.layout.row_bytes(self.width).max(1)).max(1);
        for top in (0..height).step_by(band) {
            take(self.unpack_rows(top..height.min(top + band), data, input)?);
        }
        Ok(())
    }

    fn unpack_rows(self, rows: Range<usize>, data: &[u8], input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
        let Self { width, height, layout, stride, is_bottom_up } = self;
        let row_bytes = layout.row_bytes(width);
        if stride < row_bytes {
            return Err(input.coding("rows that are too short for their pixels"));
        }
        let mut samples = Vec::new();
        let length = layout.unpacked_bytes() as usize * width as usize * rows.len();
        samples.try_reserve_exact(length).map_err(|_| input.no_memory(length as u64))?;
        for y in rows {
            let row = if is_bottom_up { height as usize - 1 - y } else { y };
            let bytes = row.checked_mul(stride).and_then(|start| data.get(start..)?.get(..row_bytes));
            layout.unpack_row(bytes.ok_or_else(|| input.damaged("the file ends early"))?, width as usize, &mut samples);
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(layout: Layout, row: &[u8], width: usize) -> Vec<u8> {
        let mut out = Vec::new();
        layout.unpack_row(row, width, &mut out);
        out
    }

    #[test]
    fn unpacks_layouts_like_pillow() {
        assert_eq!(row(Layout::Bgr16, &0x840f_u16.to_le_bytes(), 1), [131, 129, 123]);
        assert_eq!(row(Layout::Bgr15, &0xfc01_u16.to_le_bytes(), 1), [255, 0, 8]);
        assert_eq!(row(Layout::Bgra15, &0x8000_u16.to_le_bytes(), 1), [0, 0, 0, 0]);
        assert_eq!(row(Layout::Index(4), &[0x12, 0x30], 3), [1, 2, 3]);
        assert_eq!(row(Layout::Index(1), &[0b1010_0000], 3), [1, 0, 1]);
        assert_eq!(row(Layout::BitInverted, &[0b1010_0000], 3), [0, 255, 0]);
        assert_eq!(row(Layout::BGRX, &[1, 2, 3, 4], 1), [3, 2, 1]);
    }
}
