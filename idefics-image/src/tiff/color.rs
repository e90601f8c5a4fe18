//! From a page's mode to the pixels that every format hands on.
//!
//! Source: `Convert.c` of Pillow.

use super::TiffError;
use super::directory::Numbers;
use super::lab;
use super::mode::Mode;
use crate::raster::{Palette, Pixels, clip};

/// The most values that the tag ColorMap may have.
pub(super) const MAX_VALUES: usize = 3 * 256;

/// Takes the colors of the tag ColorMap: all reds, then all greens, then all blues, 16 bits each.
pub(super) fn color_map(values: Numbers<'_>) -> Result<Palette, TiffError> {
    let count = values.len() / 3;
    if count == 0 || count > 256 {
        return Err(TiffError::damaged(format!(
            "the tag ColorMap (320) has {} values where 3 to {MAX_VALUES} are expected",
            values.len()
        )));
    }
    let byte = |at: usize| values.get(at).map_or(0, |value| (value >> 8).min(255) as u8);
    Ok(Palette::new((0..count).map(|entry| [0, 1, 2].map(|channel| byte(channel * count + entry)))))
}

/// Wraps samples of a mode, and brings the modes that only TIFF has to a byte a sample. `palette` is that of the two
/// modes that have one.
pub(super) fn pixels(mode: Mode, samples: Vec<u8>, palette: Option<Palette>) -> Pixels {
    let palette = || palette.unwrap_or_else(|| Palette::new([]));
    let clip_long = |level: i32| level.clamp(0, 255) as u8;
    match mode {
        Mode::Bilevel | Mode::Grey => Pixels::Grey(samples),
        Mode::GreyAlpha => Pixels::GreyAlpha(samples),
        Mode::Palette => Pixels::Indexed(samples, palette()),
        Mode::PaletteAlpha => Pixels::IndexedAlpha(samples, palette()),
        Mode::Rgb => Pixels::Rgb(samples),
        Mode::Rgba => Pixels::Rgba(samples),
        Mode::Cmyk => Pixels::Cmyk(samples),
        Mode::Lab => {
            let converter = lab::Converter::new();
            Pixels::Rgb(samples.as_chunks().0.iter().flat_map(|&lab| converter.rgb(lab)).collect())
        }
        Mode::Grey16 => {
            Pixels::Grey(samples.as_chunks().0.iter().map(|&word| clip(u16::from_le_bytes(word))).collect())
        }
        Mode::Int => {
            Pixels::Grey(samples.as_chunks().0.iter().map(|&word| clip_long(i32::from_le_bytes(word))).collect())
        }
        // Fractions are cut off, and what is no number is black.
        Mode::Float => Pixels::Grey(samples.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word) as u8).collect()),
    }
}
