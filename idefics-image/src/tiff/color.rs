//! Converts samples of a page's mode to [`Pixels`].
//!
//! Source: `Convert.c` of Pillow.

use super::TiffError;
use super::directory::Numbers;
use super::lab;
use super::mode::Mode;
use crate::raster::{Palette, Pixels, clip};

/// Maximum number of values of the tag ColorMap.
pub(super) const MAX_VALUES: usize = 3 * 256;

/// Builds a palette from the tag ColorMap: all reds, then all greens, then all blues, 16 bits each.
pub(super) fn color_map(values: Numbers<'_>) -> Result<Palette, TiffError> {
    let count = values.len() / 3;
    if count == 0 || count > 256 {
        return Err(TiffError::damaged(format!(
            "the tag ColorMap (320) has {} values; expected 3 to {MAX_VALUES}",
            values.len()
        )));
    }
    let byte = |at: usize| values.get(at).map_or(0, |value| (value >> 8).min(255) as u8);
    Ok(Palette::new((0..count).map(|entry| [0, 1, 2].map(|channel| byte(channel * count + entry)))))
}

/// Converts samples in the mode of a page to pixels.
pub(super) struct Colors {
    mode: Mode,
    /// The palette, if the mode is one of the two palette modes.
    palette: Option<Palette>,
    lab: Option<lab::Converter>,
}

impl Colors {
    pub(super) fn new(mode: Mode, palette: Option<Palette>) -> Self {
        Self { mode, palette, lab: (mode == Mode::Lab).then(lab::Converter::new) }
    }

    /// Converts the samples to pixels. Samples of 16 and 32 bits, and CIELAB, are converted to 8-bit grey or RGB.
    pub(super) fn pixels(&self, samples: Vec<u8>) -> Pixels {
        let palette = || self.palette.clone().unwrap_or_else(|| Palette::new([]));
        let grey = |value: fn([u8; 4]) -> u8| samples.as_chunks().0.iter().map(|&word| value(word)).collect();
        match (self.mode, &self.lab) {
            (Mode::Lab, Some(lab)) => {
                Pixels::Rgb(samples.as_chunks().0.iter().flat_map(|&color| lab.rgb(color)).collect())
            }
            (Mode::Bilevel | Mode::Grey, _) => Pixels::Grey(samples),
            (Mode::GreyAlpha, _) => Pixels::GreyAlpha(samples),
            (Mode::Palette, _) => Pixels::Indexed(samples, palette()),
            (Mode::PaletteAlpha, _) => Pixels::IndexedAlpha(samples, palette()),
            (Mode::Rgb | Mode::Lab, _) => Pixels::Rgb(samples),
            (Mode::Rgba, _) => Pixels::Rgba(samples),
            (Mode::Cmyk, _) => Pixels::Cmyk(samples),
            (Mode::Grey16, _) => {
                Pixels::Grey(samples.as_chunks().0.iter().map(|&word| clip(u16::from_le_bytes(word))).collect())
            }
            (Mode::Int, _) => Pixels::Grey(grey(|word| i32::from_le_bytes(word).clamp(0, 255) as u8)),
            // The cast truncates fractions, saturates, and converts NaN to 0.
            (Mode::Float, _) => Pixels::Grey(grey(|word| f32::from_le_bytes(word) as u8)),
        }
    }
}
