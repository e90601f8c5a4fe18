//! JPEG 2000 decoder for JP2 files and bare codestreams, with the same pixel modes and depths as Pillow.
//!
//! The crate `hayro-jpeg2000` decodes the codestream. This module parses the JP2 boxes around it.
//!
//! Source: `Jpeg2KImagePlugin.py` and `Jpeg2KDecode.c` of Pillow.

use hayro_jpeg2000::{DecodeError, DecodeSettings, DecoderContext, Image};

use crate::ImageError;
use crate::decode::Input;
use crate::raster::{Palette, Pixels, Raster, clip};

pub(crate) const CODESTREAM: &[u8] = b"\xff\x4f\xff\x51";
pub(crate) const JP2: &[u8] = b"\0\0\0\x0cjP  \r\n\x87\n";

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let boxes = if bytes.starts_with(JP2) { Boxes::read(&bytes[JP2.len()..]) } else { Some(Boxes::bare(bytes)) };
    let boxes = boxes.ok_or_else(|| input.damaged("a box is missing or damaged"))?;
    let size = Size::read(boxes.codestream).ok_or_else(|| input.damaged("the header of its codestream is damaged"))?;
    let (width, height) = (size.width, size.height);
    input.check_size(width, height)?;
    let count = size.components.len();
    if !(1..=4).contains(&count) {
        return Err(input.coding(format!("{count} components")));
    }
    // The decoder returns samples as 4-byte floats.
    input.check_memory((u64::from(width) * u64::from(height)).saturating_mul(4 * count as u64))?;

    let fail = |error: DecodeError| input.damaged(error.to_string());
    let settings = DecodeSettings { resolve_palette_indices: false, strict: true, target_resolution: None };
    let image = Image::new(boxes.codestream, &settings).map_err(fail)?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(fail)?;
    let planes: Vec<&[f32]> = decoded.components().iter().map(|component| component.samples()).collect();
    let area = width as usize * height as usize;
    if planes.len() != count || planes.iter().any(|plane| plane.len() != area) {
        return Err(input.damaged("the components of its codestream do not have the size in its header"));
    }
    // The decoder converts subsampled YCbCr to RGB itself.
    let is_converted = size.has_subsampled_chroma();
    Ok(Raster::new(width, height, boxes.pixels(&size, &planes, is_converted)))
}

/// The parsed boxes of the file.
struct Boxes<'a> {
    codestream: &'a [u8],
    /// Number of components, from the header of the JP2 file or, for a bare codestream, from the header of the
    /// codestream.
    channels: u16,
    is_deep: bool,
    space: Option<Space>,
    palette: Option<Palette>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    Rgb,
    Grey,
    YCbCr,
    Cmyk,
    Bilevel,
}

/// The size header (SIZ marker segment) of the codestream.
struct Size {
    width: u32,
    height: u32,
    /// Bits per sample, and the horizontal and vertical subsampling factors.
    components: Vec<(u32, u8, u8)>,
}

impl Size {
    fn read(codestream: &[u8]) -> Option<Self> {
        let segment = codestream.strip_prefix(CODESTREAM)?;
        let long = |at: usize| Some(u32::from_be_bytes(*segment.get(at..)?.first_chunk()?));
        let count = usize::from(u16::from_be_bytes(*segment.get(36..)?.first_chunk()?));
        let components = segment.get(38..38 + 3 * count)?.chunks_exact(3);
        Some(Self {
            width: long(4)?.checked_sub(long(12)?)?,
            height: long(8)?.checked_sub(long(16)?)?,
            components: components.map(|part| (u32::from(part[0] & 0x7f) + 1, part[1], part[2])).collect(),
        })
    }

    /// Returns whether there are three components and exactly the second and third are subsampled, by equal factors.
    fn has_subsampled_chroma(&self) -> bool {
        matches!(self.components[..], [(_, 1, 1), (_, a, b), (_, c, d)] if (a, b) != (1, 1) && (a, b) == (c, d))
    }
}

fn next_box(bytes: &[u8]) -> Option<([u8; 4], &[u8], &[u8])> {
    let (&[a, b, c, d, kind @ ..], rest) = bytes.split_first_chunk::<8>()?;
    let (rest, length) = match u32::from_be_bytes([a, b, c, d]) {
        0 => (rest, rest.len()),
        1 => {
            let (length, rest) = rest.split_first_chunk()?;
            (rest, usize::try_from(u64::from_be_bytes(*length).checked_sub(16)?).ok()?)
        }
        length => (rest, (length as usize).checked_sub(8)?),
    };
    // The last box may be cut off, because the codestream marks its own end.
    let (data, rest) = rest.split_at(length.min(rest.len()));
    Some((kind, data, rest))
}

impl<'a> Boxes<'a> {
    fn bare(codestream: &'a [u8]) -> Self {
        let components = Size::read(codestream).map(|size| size.components).unwrap_or_default();
        let is_deep = components.len() == 1 && components[0].0 > 8;
        Self { codestream, channels: components.len() as u16, is_deep, space: None, palette: None }
    }

    fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut boxes = Self { codestream: &[], channels: 0, is_deep: false, space: None, palette: None };
        while let Some((kind, data, rest)) = next_box(bytes) {
            match &kind {
                b"jp2h" if boxes.channels == 0 => boxes.read_header(data)?,
                b"jp2c" => {
                    boxes.codestream = data;
                    break;
                }
                _ => {}
            }
            bytes = rest;
        }
        (boxes.channels > 0 && !boxes.codestream.is_empty()).then_some(boxes)
    }

    fn read_header(&mut self, mut bytes: &[u8]) -> Option<()> {
        while let Some((kind, data, rest)) = next_box(bytes) {
            match &kind {
                b"ihdr" => {
                    self.channels = u16::from_be_bytes(*data.get(8..)?.first_chunk()?);
                    self.is_deep = self.channels == 1 && data.get(10)? & 0x7f > 8;
                }
                b"colr" if data.first() == Some(&1) => {
                    self.space = match u32::from_be_bytes(*data.get(3..)?.first_chunk()?) {
                        0 | 15 => Some(Space::Bilevel),
                        12 => Some(Space::Cmyk),
                        16 => Some(Space::Rgb),
                        17 => Some(Space::Grey),
                        18 => Some(Space::YCbCr),
                        _ => self.space,
                    };
                }
                b"pclr" if self.channels <= 2 && !matches!(self.space, Some(Space::Grey | Space::Bilevel)) => {
                    self.palette = read_palette(data).or(self.palette.take());
                }
                _ => {}
            }
            bytes = rest;
        }
        Some(())
    }

    /// Converts the planes to pixels in the mode that Pillow uses. `is_converted` says that the planes are already RGB.
    fn pixels(&self, size: &Size, planes: &[&[f32]], is_converted: bool) -> Pixels {
        let depth = |at: usize| size.components[at].0;
        let plane = |at: usize| planes[at].iter().map(move |&sample| (to_level(sample, depth(at)), depth(at)));
        let byte = |(level, depth): (u32, u32)| to_byte(level, depth);
        let bytes = |at: usize| plane(at).map(byte);
        if let Some(palette) = &self.palette {
            return match planes.len() {
                1 => Pixels::Indexed(bytes(0).collect(), palette.clone()),
                _ => Pixels::IndexedAlpha(interleave([bytes(0), bytes(1)]), palette.clone()),
            };
        }
        let is_ycbcr = self.space == Some(Space::YCbCr) && !is_converted;
        match planes.len() {
            1 if self.is_deep => Pixels::Grey(plane(0).map(|(level, depth)| clip(to_word(level, depth))).collect()),
            1 => Pixels::Grey(bytes(0).collect()),
            2 => Pixels::GreyAlpha(interleave([bytes(0), bytes(1)])),
            3 => {
                let mut data = interleave([bytes(0), bytes(1), bytes(2)]);
                if is_ycbcr {
                    data.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = ycbcr_to_rgb(*pixel));
                }
                Pixels::Rgb(data)
            }
            _ => {
                let mut data = interleave([bytes(0), bytes(1), bytes(2), bytes(3)]);
                if self.space == Some(Space::Cmyk) {
                    return Pixels::Cmyk(data);
                }
                if is_ycbcr {
                    for pixel in data.as_chunks_mut::<4>().0 {
                        let [red, green, blue] = ycbcr_to_rgb([pixel[0], pixel[1], pixel[2]]);
                        *pixel = [red, green, blue, pixel[3]];
                    }
                }
                Pixels::Rgba(data)
            }
        }
    }
}

/// Reads a palette. Like Pillow, it drops repeated colours, which shifts the indices of all later colours.
fn read_palette(data: &[u8]) -> Option<Palette> {
    let count = usize::from(u16::from_be_bytes(*data.first_chunk()?));
    let columns = usize::from(*data.get(2)?);
    let depths = data.get(3..3 + columns)?;
    // A palette of more than 8 bits is ignored.
    if depths.iter().any(|&depth| depth > 8) || !matches!(columns, 3 | 4) {
        return None;
    }
    let mut colors: Vec<&[u8]> = Vec::new();
    for color in data.get(3 + columns..)?.chunks_exact(columns).take(count) {
        if !colors.contains(&color) {
            colors.push(color);
        }
    }
    let rgb = |color: &[u8]| [color[0], color[1], color[2]];
    Some(Palette::new(colors.into_iter().map(rgb)))
}

fn interleave<const N: usize>(mut channels: [impl Iterator<Item = u8>; N]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        for channel in &mut channels {
            match channel.next() {
                Some(value) => data.push(value),
                None => return data,
            }
        }
    }
}

/// Rounds a sample to a whole number of `depth` bits.
fn to_level(sample: f32, depth: u32) -> u32 {
    let max = ((1_u64 << depth.min(32)) - 1) as f32;
    sample.round_ties_even().clamp(0.0, max) as u32
}

/// Converts a level of `depth` bits to 8 bits: by a left shift, or by a rounded right shift that may wrap around.
///
/// Source: `j2ku_shift` of Pillow.
fn to_byte(level: u32, depth: u32) -> u8 {
    if depth <= 8 { (level << (8 - depth)) as u8 } else { (level.wrapping_add(1 << (depth - 9)) >> (depth - 8)) as u8 }
}

fn to_word(level: u32, depth: u32) -> u16 {
    if depth <= 16 {
        (level << (16 - depth)) as u16
    } else {
        (level.wrapping_add(1 << (depth - 17)) >> (depth - 16)) as u16
    }
}

/// Converts YCbCr to RGB like `ImagingConvertYCbCr2RGB` of Pillow. The products equal the entries of Pillow's tables.
fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let product = |weight: f64, chroma: u8| (weight * 64.0 * (f64::from(chroma) - 128.0) + 0.5) as i32;
    let y = i32::from(y);
    [
        y + (product(1.402, cr) >> 6),
        y + ((product(-0.34414, cb) + product(-0.71414, cr)) >> 6),
        y + (product(1.772, cb) >> 6),
    ]
    .map(|value| value.clamp(0, 255) as u8)
}
