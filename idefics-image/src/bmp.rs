//! Decoder for Windows and OS/2 bitmaps with the same output as Pillow.
//!
//! Source: `BmpImagePlugin.py` of Pillow.

use crate::ImageError;
use crate::decode::Input;
use crate::output::{Header, Output, RowSink};
use crate::raster::{Palette, Pixels};
use crate::raw::{Layout, Rows};

/// Length of the file header, in bytes.
const FILE_HEADER: usize = 14;

// Values of the header field `compression`.
const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BITFIELDS: u32 = 3;

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>, output: Output<'_>) -> Result<RowSink, ImageError> {
    let offset = u32_at(bytes, 10).ok_or_else(|| input.damaged("the file ends early"))?;
    let bitmap = Bitmap::read(bytes, FILE_HEADER, offset as usize, false, input)?;
    let mut rows = output.begin(Header::new(bitmap.width, bitmap.height), input)?;
    if bitmap.is_run_length_coded() {
        rows.push(&bitmap.pixels(bytes, bitmap.height, input)?);
    } else {
        bitmap.rows(bitmap.height).unpack_bands(bytes.get(bitmap.at..).unwrap_or_default(), input, |samples| {
            rows.push(&bitmap.layout.pixels(samples, bitmap.palette.clone()));
        })?;
    }
    Ok(rows)
}

/// The parsed header of a bitmap, in a BMP file or inside an icon or cursor.
#[derive(Debug)]
pub(crate) struct Bitmap {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) layout: Layout,
    palette: Option<Palette>,
    stride: usize,
    is_bottom_up: bool,
    compression: u32,
    /// Offset of the pixel data in the file, in bytes.
    pub(crate) at: usize,
}

impl Bitmap {
    /// Reads the header at `start`. `offset` is the declared offset of the pixels, or 0 if the file declares none.
    /// `has_alpha` says that 32-bit pixels have an alpha channel, as in some cursors.
    pub(crate) fn read(
        bytes: &[u8],
        start: usize,
        offset: usize,
        has_alpha: bool,
        input: &Input<'_>,
    ) -> Result<Self, ImageError> {
        let early = || input.damaged("the file ends early");
        let header_size = u32_at(bytes, start).ok_or_else(early)? as usize;
        if !matches!(header_size, 12 | 40 | 52 | 56 | 64 | 108 | 124) {
            return Err(input.coding(format!("a header of {header_size} bytes")));
        }
        let end = start + header_size;
        let header = bytes.get(start..end).ok_or_else(early)?;
        let word = |at: usize| u32::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let long = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (width, height, is_bottom_up, bits, compression, colors, padding);
        if header_size == 12 {
            (width, height, is_bottom_up, bits) = (word(4), word(6), true, word(10));
            (compression, colors, padding) = (RAW, 0, 3);
        } else {
            is_bottom_up = header[11] != 0xff;
            height = if is_bottom_up { long(8) } else { long(8).wrapping_neg() };
            (width, bits, compression, colors, padding) = (long(4), word(14), long(16), long(32), 4);
        }
        input.check_size(width, height)?;
        if !matches!(bits, 1 | 4 | 8 | 16 | 24 | 32) {
            return Err(input.coding(format!("{bits} bits per pixel")));
        }
        let colors = if colors == 0 && bits <= 8 { 1 << bits } else { colors as usize };
        let mut after = end;
        let mut layout = match bits {
            16 => Layout::Bgr15,
            24 => Layout::BGR,
            32 if has_alpha && compression == RAW => Layout::BGRA,
            32 => Layout::BGRX,
            bits => Layout::Index(bits as u8),
        };
        match compression {
            RAW => {}
            RLE8 | RLE4 if bits <= 8 => {}
            BITFIELDS => {
                let mut masks = [0; 4];
                let count = if header_size >= 56 { 4 } else { 3 };
                // If the header is too short to contain the masks, the masks follow the header.
                let place = if header_size >= 52 { start + 40 } else { end };
                for (at, mask) in masks[..count].iter_mut().enumerate() {
                    *mask = u32_at(bytes, place + 4 * at).ok_or_else(early)?;
                }
                after = after.max(place + 4 * count);
                layout = masked(bits, masks).ok_or_else(|| {
                    let [red, green, blue, alpha] = masks;
                    input.coding(format!("{bits} bits with the masks {red:x}, {green:x}, {blue:x} and {alpha:x}"))
                })?;
            }
            other => return Err(input.coding(format!("compression {other} of {bits}-bit pixels"))),
        }
        let mut at = offset;
        if bits <= 8 && offset == FILE_HEADER + header_size {
            at += padding * colors;
        }
        let mut palette = None;
        if let Layout::Index(_) = layout {
            if !(1..=65536).contains(&colors) {
                return Err(input.coding(format!("a palette of {colors} colours")));
            }
            let rest = &bytes[after.min(bytes.len())..];
            let entries = &rest[..rest.len().min(padding * colors)];
            after += entries.len();
            (layout, palette) = read_palette(entries, padding, colors, layout, input)?;
        }
        let stride = ((width as usize * bits as usize + 31) >> 3) & !3;
        Ok(Self {
            width,
            height,
            layout,
            palette,
            stride,
            is_bottom_up,
            compression,
            at: if at == 0 { after } else { at },
        })
    }

    /// Returns the offset at which the first `height` rows end. The rows must not be compressed.
    pub(crate) fn end(&self, height: u32) -> usize {
        self.at + self.stride * height as usize
    }

    /// Returns whether the rows are run-length coded.
    fn is_run_length_coded(&self) -> bool {
        self.compression == RLE8 || self.compression == RLE4
    }

    /// Describes the first `height` rows of the file.
    fn rows(&self, height: u32) -> Rows {
        let &Self { width, layout, stride, is_bottom_up, .. } = self;
        Rows { width, height, layout, stride, is_bottom_up }
    }

    /// Decodes the first `height` rows of the file.
    pub(crate) fn pixels(&self, bytes: &[u8], height: u32, input: &Input<'_>) -> Result<Pixels, ImageError> {
        let rows = self.rows(height);
        let samples = if self.is_run_length_coded() {
            let rows = Rows { layout: Layout::Index(8), stride: self.width as usize, ..rows };
            input.check_memory(2 * u64::from(rows.width) * u64::from(height))?;
            let indices = decompress(bytes, self.at, self.width as usize, height as usize, self.compression == RLE4);
            rows.unpack(&indices, input)?
        } else {
            rows.unpack(bytes.get(self.at..).unwrap_or_default(), input)?
        };
        Ok(self.layout.pixels(samples, self.palette.clone()))
    }
}

/// Returns the layout of pixels of `bits` bits with the given masks for red, green, blue and alpha, or `None` if Pillow
/// does not support the masks.
fn masked(bits: u32, masks: [u32; 4]) -> Option<Layout> {
    match (bits, masks) {
        (32, [0xff_0000, 0xff00, 0xff, 0]) => Some(Layout::BGRX),
        (32, [0xff00_0000, 0xff_0000, 0xff00, 0]) => Some(Layout::Rgb([3, 2, 1], 4)),
        (32, [0xff00_0000, 0xff00, 0xff, 0]) => Some(Layout::Rgb([3, 1, 0], 4)),
        (32, [0xff00_0000, 0xff_0000, 0xff00, 0xff]) => Some(Layout::Rgba([3, 2, 1, 0])),
        (32, [0xff, 0xff00, 0xff_0000, 0xff00_0000]) => Some(Layout::Rgba([0, 1, 2, 3])),
        (32, [0xff_0000, 0xff00, 0xff, 0xff00_0000] | [0, 0, 0, 0]) => Some(Layout::BGRA),
        (32, [0xff00_0000, 0xff00, 0xff, 0xff_0000]) => Some(Layout::Rgba([3, 1, 0, 2])),
        (24, [0xff_0000, 0xff00, 0xff, _]) => Some(Layout::BGR),
        (16, [0xf800, 0x7e0, 0x1f, _]) => Some(Layout::Bgr16),
        (16, [0x7c00, 0x3e0, 0x1f, _]) => Some(Layout::Bgr15),
        _ => None,
    }
}

/// Reads the palette. Returns no palette if every entry is a grey whose level equals the index of the entry, or if the
/// palette is black and white. Pillow then reads the pixels as 8-bit grey or as 1-bit, whatever depth the header
/// declares.
fn read_palette(
    entries: &[u8],
    padding: usize,
    colors: usize,
    layout: Layout,
    input: &Input<'_>,
) -> Result<(Layout, Option<Palette>), ImageError> {
    let level = |at: usize| if colors == 2 { 255 * at as u8 } else { at as u8 };
    let color = |at: usize| entries.get(padding * at..)?.first_chunk::<3>();
    if (0..colors).all(|at| color(at).is_some_and(|color| *color == [level(at); 3])) {
        return Ok((if colors == 2 { Layout::Bit } else { Layout::Grey }, None));
    }
    if entries.len() / padding > 256 {
        return Err(input.coding(format!("a palette of {colors} colours")));
    }
    let entries = entries.chunks_exact(padding).map(|entry| [entry[2], entry[1], entry[0]]);
    Ok((layout, Some(Palette::new(entries))))
}

/// Decompresses run-length coded palette indices to one byte each, in the order of the file. If the data ends early,
/// the result is shorter than `width * height`.
fn decompress(bytes: &[u8], mut at: usize, width: usize, height: usize, is_rle4: bool) -> Vec<u8> {
    let total = width * height;
    let mut indices = Vec::with_capacity(total);
    let mut x = 0;
    while indices.len() < total {
        let Some(&[count, value]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { break };
        at += 2;
        match (count, value) {
            (0, 0) => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let Some(&[right, up]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { break };
                at += 2;
                let end = indices.len() + usize::from(right) + usize::from(up) * width;
                indices.resize(end.min(total), 0);
                x = end % width;
            }
            (0, count) => {
                let length = usize::from(if is_rle4 { count / 2 } else { count });
                let rest = bytes.get(at..).unwrap_or_default();
                let data = &rest[..rest.len().min(length)];
                if is_rle4 {
                    indices.extend(data.iter().flat_map(|byte| [byte >> 4, byte & 15]));
                } else {
                    indices.extend_from_slice(data);
                }
                if data.len() < length {
                    break;
                }
                x += usize::from(count);
                at += length;
                at += at % 2;
            }
            (count, value) => {
                let count = usize::from(count).min(width.saturating_sub(x));
                let pair = if is_rle4 { [value >> 4, value & 15] } else { [value; 2] };
                indices.extend((0..count).map(|at| pair[at % 2]));
                x += count;
            }
        }
    }
    indices
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
