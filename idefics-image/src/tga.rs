//! Truevision TGA decoder with the same output as Pillow. The format has no magic number, so it is tried last.
//!
//! Source: `TgaImagePlugin.py` and `TgaRleDecode.c` of Pillow.

use crate::ImageError;
use crate::decode::Input;
use crate::raster::{Palette, Pixels, Raster};
use crate::raw::{Layout, Rows};

/// Length of the header, in bytes.
const HEADER: usize = 18;

/// Returns whether Pillow accepts the start of the file as the header of a TGA file.
pub(crate) fn is_tga(bytes: &[u8]) -> bool {
    Header::read(bytes).is_some_and(|header| header.width > 0 && header.height > 0)
}

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let header = Header::read(bytes).ok_or_else(|| input.damaged("its header is damaged"))?;
    let Header { width, height, layout, .. } = header;
    input.check_size(width, height)?;
    let mut at = HEADER + usize::from(bytes[0]);
    let mut palette = None;
    if header.has_palette {
        let entries = header.palette_length * header.palette_bits.div_ceil(8);
        let rest = &bytes[at.min(bytes.len())..];
        let entries = &rest[..rest.len().min(entries)];
        at += entries.len();
        palette = Some(header.palette(entries, input)?);
    }
    let data = bytes.get(at..).unwrap_or_default();
    let row_bytes = layout.row_bytes(width);
    let rows = Rows { width, height, layout, stride: row_bytes, is_bottom_up: header.is_bottom_up };
    let mut samples = if header.is_run_length_coded {
        input.check_memory(2 * layout.unpacked_bytes() * u64::from(width) * u64::from(height))?;
        rows.unpack(&decompress(data, row_bytes, height as usize, layout, input)?, input)?
    } else {
        rows.unpack(data, input)?
    };
    let channels = layout.unpacked_bytes() as usize;
    if channels == 4 && has_no_alpha(bytes) {
        samples.chunks_exact_mut(4).for_each(|pixel| pixel[3] = 255);
    }
    if header.is_mirrored {
        for row in samples.chunks_exact_mut(channels * width as usize) {
            row.reverse();
            row.chunks_exact_mut(channels).for_each(|pixel| pixel.reverse());
        }
    }
    let pixels = match layout {
        // Grey levels are palette indices if there is a palette.
        Layout::Grey if palette.is_some() => Pixels::Indexed(samples, palette.unwrap_or(Palette::new([]))),
        layout => layout.pixels(samples, palette),
    };
    Ok(Raster::new(width, height, pixels))
}

#[derive(Debug, Clone, Copy)]
struct Header {
    width: u32,
    height: u32,
    layout: Layout,
    is_run_length_coded: bool,
    is_bottom_up: bool,
    is_mirrored: bool,
    has_palette: bool,
    palette_start: usize,
    palette_length: usize,
    palette_bits: usize,
}

impl Header {
    /// Parses the header. Returns `None` if Pillow rejects the file or cannot load it.
    fn read(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (palette_kind, kind, depth, flags) = (header[1], header[2], header[16], header[17]);
        let has_palette = match palette_kind {
            0 => false,
            1 => matches!(header[7], 16 | 24 | 32),
            _ => return None,
        };
        if palette_kind == 1 && !has_palette || !matches!(kind, 1..=3 | 9..=11) {
            return None;
        }
        let layout = match (kind & 7, depth) {
            (1, 8) if has_palette => Layout::Index(8),
            (3, 1) => Layout::Bit,
            (3, 8) => Layout::Grey,
            (3, 16) => Layout::GreyAlpha,
            (2, 16) => Layout::Bgra15,
            (2, 24) => Layout::BGR,
            (2, 32) => Layout::BGRA,
            _ => return None,
        };
        Some(Self {
            width: word(12).into(),
            height: word(14).into(),
            layout,
            is_run_length_coded: kind & 8 != 0,
            is_bottom_up: flags & 0x20 == 0,
            is_mirrored: flags & 0x10 != 0,
            has_palette,
            palette_start: word(3).into(),
            palette_length: word(5).into(),
            palette_bits: header[7].into(),
        })
    }

    fn palette(&self, entries: &[u8], input: &Input<'_>) -> Result<Palette, ImageError> {
        let size = self.palette_bits / 8;
        if self.palette_start + entries.len() / size > 256 {
            return Err(input.coding("a palette of more than 256 colours"));
        }
        let color = |entry: &[u8]| match *entry {
            [low, high] => {
                let word = u16::from_le_bytes([low, high]);
                [10, 5, 0].map(|shift| ((word >> shift & 31) * 255 / 31) as u8)
            }
            [blue, green, red, ..] => [red, green, blue],
            _ => [0; 3],
        };
        let skipped = std::iter::repeat_n([0; 3], self.palette_start);
        Ok(Palette::new(skipped.chain(entries.chunks_exact(size).map(color))))
    }
}

/// Decompresses run-length coded rows, in the order of the file. A run must not cross the end of its row. Literal
/// pixels may cross it.
fn decompress(
    mut data: &[u8],
    row_bytes: usize,
    height: usize,
    layout: Layout,
    input: &Input<'_>,
) -> Result<Vec<u8>, ImageError> {
    let early = || input.damaged("the file ends early");
    let size = usize::from(layout.bits() / 8);
    if size == 0 {
        return Err(input.coding("run-length coding of single bits"));
    }
    let total = row_bytes * height;
    let mut rows = Vec::with_capacity(total);
    while rows.len() < total {
        let (&head, rest) = data.split_first().ok_or_else(early)?;
        let length = size * (usize::from(head & 0x7f) + 1);
        if head & 0x80 != 0 {
            let (pixel, rest) = rest.split_at_checked(size).ok_or_else(early)?;
            if rows.len() % row_bytes + length > row_bytes {
                return Err(input.damaged("a run of pixels crosses the end of its row"));
            }
            (0..length / size).for_each(|_| rows.extend_from_slice(pixel));
            data = rest;
        } else {
            let (pixels, rest) = rest.split_at_checked(length).ok_or_else(early)?;
            rows.extend_from_slice(pixels);
            data = rest;
        }
    }
    rows.truncate(total);
    Ok(rows)
}

/// Returns whether the extension area of a TGA 2.0 file declares that the fourth channel is not alpha.
fn has_no_alpha(bytes: &[u8]) -> bool {
    const ATTRIBUTES: usize = 494;
    let read = || {
        let footer: &[u8; 26] = bytes.last_chunk()?;
        let offset = u32::from_le_bytes(*footer.first_chunk()?);
        if !footer.ends_with(b"TRUEVISION-XFILE.\0") || offset == 0 {
            return None;
        }
        bytes.get(offset as usize + ATTRIBUTES)
    };
    read() == Some(&0)
}
