//! Decoder for Windows icons and cursors with the same output as Pillow. It decodes the largest image.
//!
//! Source: `IcoImagePlugin.py` and `CurImagePlugin.py` of Pillow.

use crate::ImageError;
use crate::bmp::Bitmap;
use crate::decode::Input;
use crate::png;
use crate::raster::{Palette, Pixels, Raster};
use crate::raw::{Layout, Rows};

/// Length of the file header, in bytes.
const HEADER: usize = 6;
/// Length of a directory entry, in bytes.
const ENTRY: usize = 16;

/// Returns whether the file starts like a cursor file with at least one image. The number of images is checked because
/// a TGA file can start with the same four bytes.
pub(crate) fn is_cursor(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, 2, 0, low, high, ..] if (*low, *high) != (0, 0))
}

/// One entry of the directory of images.
#[derive(Debug, Clone, Copy)]
struct Entry {
    width: u16,
    height: u16,
    bits: u16,
    color_depth: u32,
    size: usize,
    offset: usize,
}

impl Entry {
    fn read(bytes: &[u8; ENTRY]) -> Self {
        let side = |value: u8| if value == 0 { 256 } else { u16::from(value) };
        let long = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let bits = u16::from_le_bytes([bytes[6], bytes[7]]);
        // If the depth is missing, Pillow derives it from the number of colours, rounded up to a power of two.
        let color_depth = match (bits, bytes[2]) {
            (0, 0 | 1) => 256,
            (0, colors) => u32::from(colors).next_power_of_two().ilog2(),
            (bits, _) => bits.into(),
        };
        Self { width: side(bytes[0]), height: side(bytes[1]), bits, color_depth, size: long(8), offset: long(12) }
    }
}

fn entries(bytes: &[u8], input: &Input<'_>) -> Result<Vec<Entry>, ImageError> {
    let early = || input.damaged("the file ends early");
    let count = usize::from(u16::from_le_bytes(*bytes.get(4..).and_then(|rest| rest.first_chunk()).ok_or_else(early)?));
    let table = bytes.get(HEADER..HEADER + ENTRY * count).ok_or_else(early)?;
    Ok(table.as_chunks().0.iter().map(Entry::read).collect())
}

/// Decodes the icon with the largest area. Of several such icons, the icon with the lowest depth is decoded.
pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let entries = entries(bytes, input)?;
    let entry = entries
        .iter()
        .min_by_key(|entry| (std::cmp::Reverse(u32::from(entry.width) * u32::from(entry.height)), entry.color_depth))
        .ok_or_else(|| input.damaged("it contains no image"))?;
    let start = bytes.get(entry.offset..).unwrap_or_default();
    if start.starts_with(png::SIGNATURE) {
        let mut picture = png::decode_stored(start, input)?;
        // The orientation is ignored, and so is any transparency other than an alpha channel.
        if let Pixels::Indexed(_, palette) = &mut picture.pixels {
            palette.0.iter_mut().for_each(|color| color[3] = 255);
        }
        return Ok(picture);
    }
    let bitmap = Bitmap::read(bytes, entry.offset, 0, false, input)?;
    let (width, height) = (bitmap.width, bitmap.height / 2);
    input.check_size(width, height)?;
    input.check_memory(4 * u64::from(width) * u64::from(height))?;
    let pixels = bitmap.pixels(bytes, height, input)?;
    let alpha = if entry.bits == 32 {
        let data = bytes.get(bitmap.at..).unwrap_or_default();
        let layout = Layout::Rgb([3, 3, 3], 4);
        let rows = Rows { width, height, layout, stride: layout.row_bytes(width), is_bottom_up: true };
        rows.unpack(data, input)?.into_iter().step_by(3).collect()
    } else {
        let stride = (width as usize).next_multiple_of(32) / 8;
        let end = entry.offset + entry.size;
        let at = end
            .checked_sub(stride * height as usize)
            .ok_or_else(|| input.damaged("its transparency mask is cut off"))?;
        let rows = Rows { width, height, layout: Layout::BitInverted, stride, is_bottom_up: true };
        let mut mask = rows.unpack(bytes.get(at..).unwrap_or_default(), input)?;
        // Pillow writes masks without row padding. When Pillow reads such a file, it mistakes part of the colours for
        // the mask, but `load_image` then drops this mask. Therefore, a mask that overlaps the pixels is ignored here.
        if at < bitmap.end(height) {
            mask.fill(255);
        }
        mask
    };
    Ok(Raster::new(width, height, Pixels::Rgba(with_alpha(pixels, &alpha))))
}

/// Converts the pixels to RGBA with the given alpha.
fn with_alpha(pixels: Pixels, alpha: &[u8]) -> Vec<u8> {
    let (data, channels, palette) = match pixels {
        Pixels::Grey(data) => (data, 1, Palette::new((0..=255).map(|level| [level; 3]))),
        Pixels::Indexed(data, palette) => (data, 1, palette),
        Pixels::Rgb(data) => (data, 3, Palette::new([])),
        Pixels::GreyAlpha(data) | Pixels::IndexedAlpha(data, _) => (data, 2, Palette::new([])),
        Pixels::Rgba(data) | Pixels::Cmyk(data) => (data, 4, Palette::new([])),
    };
    let mut rgba = Vec::with_capacity(4 * alpha.len());
    for (pixel, &alpha) in data.chunks_exact(channels).zip(alpha) {
        let [red, green, blue] = match *pixel {
            [red, green, blue, ..] => [red, green, blue],
            [index, ..] => palette.color(index),
            [] => [0; 3],
        };
        rgba.extend([red, green, blue, alpha]);
    }
    rgba
}

/// Decodes the largest cursor. A cursor counts as larger only if it is both wider and higher than the largest before
/// it. The mask is applied only to monochrome and grey cursors.
pub(crate) fn decode_cursor(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let table = entries(bytes, input)?;
    // A side of 256 is stored as 0, and Pillow compares the stored values.
    let side = |value: u16| value % 256;
    let largest = table.iter().copied().reduce(|best, entry| {
        let is_larger = side(entry.width) > side(best.width) && side(entry.height) > side(best.height);
        if is_larger { entry } else { best }
    });
    let entry = largest.ok_or_else(|| input.damaged("it contains no image"))?;
    let bitmap = Bitmap::read(bytes, entry.offset, 0, entry.offset == HEADER + ENTRY, input)?;
    let (width, height) = (bitmap.width, bitmap.height / 2);
    input.check_size(width, height)?;
    if !matches!(bitmap.layout, Layout::Bit | Layout::Grey) {
        return Ok(Raster::new(width, height, bitmap.pixels(bytes, height, input)?));
    }
    // The bitmap is twice as high as the image: it holds the mask above the image.
    let Pixels::Grey(both) = bitmap.pixels(bytes, 2 * height, input)? else {
        return Err(input.coding("a mask that is not grey"));
    };
    let (mask, picture) = both.split_at(width as usize * height as usize);
    let mut pixels = Vec::with_capacity(2 * picture.len());
    for (&level, &mask) in picture.iter().zip(mask) {
        pixels.extend([level, 255].map(|value| muldiv255(value, 255 - mask)));
    }
    Ok(Raster::new(width, height, Pixels::GreyAlpha(pixels)))
}

/// Multiplies two values of 0 to 255 and divides the product by 255 with rounding, like `MULDIV255` of Pillow.
fn muldiv255(value: u8, factor: u8) -> u8 {
    let product = u32::from(value) * u32::from(factor) + 128;
    (((product >> 8) + product) >> 8) as u8
}
