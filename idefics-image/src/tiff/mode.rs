//! The modes that Pillow uses for TIFF files, and the sample layouts that it unpacks into these modes.
//!
//! Source: `OPEN_INFO` of Pillow's `TiffImagePlugin.py` (supported files and their modes), `Unpack.c` of Pillow.

use super::directory::ByteOrder;
use super::directory::ByteOrder::Little;

/// A mode of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Black or white, one byte per pixel.
    Bilevel,
    Grey,
    /// An index into the colour map.
    Palette,
    GreyAlpha,
    PaletteAlpha,
    Rgb,
    Rgba,
    Cmyk,
    /// CIELAB; `a` and `b` have an offset of 128.
    Lab,
    /// 16-bit grey, little-endian.
    Grey16,
    /// 32-bit signed grey, little-endian.
    Int,
    /// 32-bit floating-point grey, little-endian.
    Float,
}

impl Mode {
    /// Returns the number of bytes per pixel.
    pub(super) fn pixel_bytes(self) -> usize {
        match self {
            Self::Bilevel | Self::Grey | Self::Palette => 1,
            Self::GreyAlpha | Self::PaletteAlpha | Self::Grey16 => 2,
            Self::Rgb | Self::Lab => 3,
            Self::Rgba | Self::Cmyk | Self::Int | Self::Float => 4,
        }
    }

    /// Returns the number of channels that Pillow counts for this mode.
    pub(super) fn bands(self) -> usize {
        match self {
            Self::Bilevel | Self::Grey | Self::Palette | Self::Grey16 | Self::Int | Self::Float => 1,
            Self::GreyAlpha | Self::PaletteAlpha => 2,
            Self::Rgb | Self::Lab => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }
}

/// The layout of the samples in a row (Pillow's raw mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Samples {
    /// One sample of 1, 2, 4 or 8 bits per pixel. If `is_inverted`, 0 is white. If `is_reversed`, the lowest bit of a
    /// byte is first.
    Packed { bits: usize, is_inverted: bool, is_reversed: bool },
    /// One sample of 12 bits per pixel.
    Twelve,
    /// One sample of 16 bits per pixel. If `is_reversed`, the bits of each byte are reversed.
    Wide { order: ByteOrder, is_signed: bool, is_reversed: bool },
    /// One sample of 32 bits per pixel.
    Long(ByteOrder),
    /// `stored` samples of 8 bits per pixel. Only the first samples are kept, one for each channel of the mode.
    Bytes { stored: usize, is_reversed: bool, is_premultiplied: bool },
    /// `stored` samples of 16 bits per pixel. Only the upper bytes of the first samples are kept, one for each channel.
    Words { stored: usize, order: ByteOrder, is_premultiplied: bool },
}

impl Samples {
    /// Returns the number of bits per stored pixel.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Packed { bits, .. } => bits,
            Self::Twelve => 12,
            Self::Wide { .. } => 16,
            Self::Long(_) => 32,
            Self::Bytes { stored, .. } => 8 * stored,
            Self::Words { stored, .. } => 16 * stored,
        }
    }

    /// Returns the number of bytes in a row of `pixels` pixels.
    pub(super) fn row_bytes(self, pixels: usize) -> usize {
        (pixels * self.bits()).div_ceil(8)
    }

    /// Returns the layout of samples that libtiff has decoded. libtiff returns 16-bit samples in native (little-endian)
    /// byte order, whatever the byte order of the file. Pillow ignores this for signed samples and for longer samples,
    /// and so does this function.
    pub(super) fn in_native_order(self) -> Self {
        match self {
            Self::Wide { is_signed: false, is_reversed, .. } => {
                Self::Wide { order: Little, is_signed: false, is_reversed }
            }
            Self::Words { stored, is_premultiplied, .. } => Self::Words { stored, order: Little, is_premultiplied },
            other => other,
        }
    }

    /// Unpacks a row to `out`, which receives whole pixels of `mode`.
    pub(super) fn unpack(self, mode: Mode, row: &[u8], out: &mut [u8]) {
        match self {
            Self::Packed { bits: 8, is_inverted, is_reversed } => {
                let flip = if is_inverted { 0xff } else { 0 };
                for (out, &value) in out.iter_mut().zip(row) {
                    *out = flip ^ if is_reversed { value.reverse_bits() } else { value };
                }
            }
            Self::Packed { bits, is_inverted, is_reversed } => {
                let scale = match mode {
                    Mode::Palette => 1,
                    _ => 255 / ((1_u16 << bits) - 1) as u8,
                };
                let flip = if is_inverted { 0xff } else { 0 };
                for (pixels, &byte) in out.chunks_mut(8 / bits).zip(row) {
                    let mut byte = if is_reversed { byte.reverse_bits() } else { byte };
                    for out in pixels {
                        *out = flip ^ ((byte >> (8 - bits)) * scale);
                        byte <<= bits;
                    }
                }
            }
            Self::Twelve => {
                for (pair, bytes) in out.chunks_mut(4).zip(row.chunks(3)) {
                    let byte = |at: usize| u16::from(bytes.get(at).copied().unwrap_or(0));
                    let values = [byte(0) << 4 | byte(1) >> 4, (byte(1) & 15) << 8 | byte(2)];
                    for (out, value) in pair.chunks_exact_mut(2).zip(values) {
                        out.copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
            Self::Wide { order, is_signed, is_reversed } => {
                for (out, &bytes) in out.chunks_exact_mut(mode.pixel_bytes()).zip(row.as_chunks().0) {
                    let value = order.u16(if is_reversed { bytes.map(u8::reverse_bits) } else { bytes });
                    if is_signed {
                        out.copy_from_slice(&i32::from(value.cast_signed()).to_le_bytes());
                    } else {
                        out.copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
            Self::Long(order) => {
                for (out, &bytes) in out.chunks_exact_mut(4).zip(row.as_chunks().0) {
                    out.copy_from_slice(&order.u32(bytes).to_le_bytes());
                }
            }
            Self::Bytes { stored, is_reversed, is_premultiplied } => {
                let kept = mode.pixel_bytes();
                for (out, pixel) in out.chunks_exact_mut(kept).zip(row.chunks_exact(stored)) {
                    out.copy_from_slice(&pixel[..kept]);
                    if is_reversed {
                        out.iter_mut().for_each(|value| *value = value.reverse_bits());
                    }
                    if is_premultiplied {
                        divide_by_alpha(out);
                    }
                }
            }
            Self::Words { stored, order, is_premultiplied } => {
                let kept = mode.pixel_bytes();
                let upper = if order == Little { 1 } else { 0 };
                for (out, pixel) in out.chunks_exact_mut(kept).zip(row.chunks_exact(2 * stored)) {
                    for (out, word) in out.iter_mut().zip(pixel.chunks_exact(2)) {
                        *out = word[upper];
                    }
                    if is_premultiplied {
                        divide_by_alpha(out);
                    }
                }
            }
        }
        if mode == Mode::Lab {
            for pixel in out.chunks_exact_mut(3) {
                pixel[1] ^= 128;
                pixel[2] ^= 128;
            }
        }
    }
}

/// Divides premultiplied colours by alpha, which is the last sample of the pixel.
pub(super) fn divide_by_alpha(pixel: &mut [u8]) {
    let Some((&mut alpha, colors)) = pixel.split_last_mut() else { return };
    for value in colors {
        *value = match alpha {
            0 => 0,
            255 => *value,
            _ => (u32::from(*value) * 255 / u32::from(alpha)).min(255) as u8,
        };
    }
}

/// The properties of a page that determine how Pillow reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) order: ByteOrder,
    pub(super) photometric: u64,
    /// 1 is unsigned, 2 is signed, 3 is floating point.
    pub(super) sample_format: u16,
    /// Whether the lowest bit of a byte is first (FillOrder 2).
    pub(super) is_reversed: bool,
    pub(super) bits: &'a [u16],
    pub(super) extra: &'a [u16],
}

impl Key<'_> {
    /// Returns the mode and the layout of the samples, or `None` if Pillow does not support the page.
    pub(super) fn open(self) -> Option<(Mode, Samples)> {
        const UNSIGNED: u16 = 1;
        const SIGNED: u16 = 2;
        const FLOAT: u16 = 3;
        let Self { order, photometric, sample_format, is_reversed, bits, extra } = self;
        let packed = |bits: u16, is_inverted| Samples::Packed { bits: usize::from(bits), is_inverted, is_reversed };
        let wide = |is_signed| Samples::Wide { order, is_signed, is_reversed };
        let bytes = |is_premultiplied| Samples::Bytes { stored: bits.len(), is_reversed: false, is_premultiplied };
        let words = |is_premultiplied| Samples::Words { stored: bits.len(), order, is_premultiplied };
        Some(match (photometric, sample_format, is_reversed, bits, extra) {
            (0 | 1, UNSIGNED, _, [1], []) => (Mode::Bilevel, packed(1, photometric == 0)),
            (0 | 1, UNSIGNED, _, &[depth @ (2 | 4 | 8)], []) => (Mode::Grey, packed(depth, photometric == 0)),
            (1, SIGNED, false, [8], []) => (Mode::Grey, packed(8, false)),
            (1, UNSIGNED, false, [12], []) if order == Little => (Mode::Grey16, Samples::Twelve),
            // Photometric 0 means that 0 is white here too, but Pillow does not invert these samples.
            (0, UNSIGNED, false, [16], []) if order == Little => (Mode::Grey16, wide(false)),
            (1, UNSIGNED, false, [16], []) => (Mode::Grey16, wide(false)),
            (1, UNSIGNED, true, [16], []) if order == Little => (Mode::Grey16, wide(false)),
            (1, SIGNED, false, [16], []) => (Mode::Int, wide(true)),
            (1, UNSIGNED, false, [32], []) if order == Little => (Mode::Int, Samples::Long(order)),
            (1, SIGNED, false, [32], []) => (Mode::Int, Samples::Long(order)),
            (0 | 1, FLOAT, false, [32], []) => (Mode::Float, Samples::Long(order)),
            (1, UNSIGNED, false, [8, 8], [2]) => (Mode::GreyAlpha, bytes(false)),
            (2, UNSIGNED, true, [8, 8, 8], []) => {
                (Mode::Rgb, Samples::Bytes { stored: 3, is_reversed: true, is_premultiplied: false })
            }
            (2, UNSIGNED, false, [8, 8, 8], []) => (Mode::Rgb, bytes(false)),
            (2, UNSIGNED, false, [8, 8, 8, 8], [0])
            | (2, UNSIGNED, false, [8, 8, 8, 8, 8], [0, 0])
            | (2, UNSIGNED, false, [8, 8, 8, 8, 8, 8], [0, 0, 0]) => (Mode::Rgb, bytes(false)),
            // The fourth sample is alpha if ExtraSamples is missing, or is 999 (written by Corel Draw 10).
            (2, UNSIGNED, false, [8, 8, 8, 8], [] | [2 | 999])
            | (2, UNSIGNED, false, [8, 8, 8, 8, 8], [2, 0])
            | (2, UNSIGNED, false, [8, 8, 8, 8, 8, 8], [2, 0, 0]) => (Mode::Rgba, bytes(false)),
            (2, UNSIGNED, false, [8, 8, 8, 8], [1])
            | (2, UNSIGNED, false, [8, 8, 8, 8, 8], [1, 0])
            | (2, UNSIGNED, false, [8, 8, 8, 8, 8, 8], [1, 0, 0]) => (Mode::Rgba, bytes(true)),
            (2, UNSIGNED, false, [16, 16, 16], []) | (2, UNSIGNED, false, [16, 16, 16, 16], [0]) => {
                (Mode::Rgb, words(false))
            }
            (2, UNSIGNED, false, [16, 16, 16, 16], [] | [2]) => (Mode::Rgba, words(false)),
            (2, UNSIGNED, false, [16, 16, 16, 16], [1]) => (Mode::Rgba, words(true)),
            (3, UNSIGNED, _, &[depth @ (1 | 2 | 4 | 8)], []) => (Mode::Palette, packed(depth, false)),
            (3, UNSIGNED, false, [8, 8], [0]) => (Mode::Palette, bytes(false)),
            (3, UNSIGNED, false, [8, 8], [2]) => (Mode::PaletteAlpha, bytes(false)),
            (5, UNSIGNED, false, [8, 8, 8, 8], [])
            | (5, UNSIGNED, false, [8, 8, 8, 8, 8], [0])
            | (5, UNSIGNED, false, [8, 8, 8, 8, 8, 8], [0, 0]) => (Mode::Cmyk, bytes(false)),
            (5, UNSIGNED, false, [16, 16, 16, 16], []) => (Mode::Cmyk, words(false)),
            (6, UNSIGNED, false, [8], []) => (Mode::Grey, packed(8, false)),
            // Pillow lets libtiff convert YCbCr to RGB with a fourth, unused sample.
            (6, UNSIGNED, false, [8, 8, 8], []) => {
                (Mode::Rgb, Samples::Bytes { stored: 4, is_reversed: false, is_premultiplied: false })
            }
            (8, UNSIGNED, false, [8, 8, 8], []) => (Mode::Lab, bytes(false)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(bits: &'static [u16]) -> Key<'static> {
        Key { order: ByteOrder::Big, photometric: 1, sample_format: 1, is_reversed: false, bits, extra: &[] }
    }

    #[test]
    fn scales_packed_samples_to_bytes() {
        for (bits, row, expected) in [
            (&[1][..], &[0b1010_0000][..], [255, 0, 255]),
            (&[2], &[0b0001_1000], [0, 85, 170]),
            (&[4], &[0x0f, 0x70], [0, 255, 119]),
        ] {
            let (mode, samples) = key(bits).open().unwrap();
            let mut out = [0; 3];
            samples.unpack(mode, row, &mut out);
            assert_eq!(out, expected, "{bits:?}");
            let (mode, samples) = Key { photometric: 0, ..key(bits) }.open().unwrap();
            samples.unpack(mode, row, &mut out);
            assert_eq!(out, expected.map(|value| 255 - value), "{bits:?}");
        }
    }

    #[test]
    fn rejects_layouts_that_pillow_rejects() {
        assert!(key(&[12]).open().is_none(), "12 bits are only supported in little-endian files");
        assert!(Key { order: Little, ..key(&[12]) }.open().is_some());
        assert!(Key { photometric: 0, ..key(&[16]) }.open().is_none());
        assert!(key(&[64]).open().is_none());
        assert!(Key { photometric: 32844, ..key(&[8]) }.open().is_none());
    }

    #[test]
    fn divides_by_alpha_like_pillow() {
        let mut pixel = [100, 128, 200, 128];
        divide_by_alpha(&mut pixel);
        assert_eq!(pixel, [199, 255, 255, 128]);
        let mut clear = [9, 9, 9, 0];
        divide_by_alpha(&mut clear);
        assert_eq!(clear, [0; 4]);
    }
}
