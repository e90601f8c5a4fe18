//! Undoes predictors, which store differences between neighbouring samples.
//!
//! Source: TIFF 6.0 section 14, TIFF Technical Note 3, and `tif_predict.c` of libtiff 4.7.

use super::TiffError;
use super::directory::ByteOrder;
use super::page::{Compression, Page};
use super::tag::Tag;

/// The predictor that is undone on each row after decompression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    None,
    /// Samples are stored as differences from the pixel on the left.
    Horizontal,
    /// Bytes are stored as differences, and are grouped by their position in the sample.
    FloatingPoint,
}

impl Predictor {
    pub(super) fn from_page(page: &Page<'_>) -> Result<Self, TiffError> {
        if !matches!(page.compression, Compression::Lzw | Compression::Deflate) {
            return Ok(Self::None);
        }
        let refuse = |what: &str| Err(TiffError::coding(format!("{what} (tag Predictor)")));
        match page.tags.value(Tag::PREDICTOR)?.unwrap_or(1) {
            1 => Ok(Self::None),
            2 if matches!(page.bits, 8 | 16 | 32) => Ok(Self::Horizontal),
            2 => refuse("a horizontal predictor for samples that do not have 8, 16 or 32 bits"),
            3 if page.sample_format == 3 && page.bits == 32 => Ok(Self::FloatingPoint),
            3 => refuse("a floating-point predictor for samples that are not 32-bit floats"),
            other => refuse(&format!("the predictor {other}")),
        }
    }

    /// Undoes the predictor on whole rows, and converts samples of 16 and 32 bits to little-endian. `samples` is the
    /// number of interleaved samples per pixel.
    pub(super) fn finish(self, rows: &mut [u8], row_bytes: usize, samples: usize, bits: u16, order: ByteOrder) {
        if order == ByteOrder::Big && self != Self::FloatingPoint {
            match bits {
                16 => rows.as_chunks_mut::<2>().0.iter_mut().for_each(|word| word.reverse()),
                32 => rows.as_chunks_mut::<4>().0.iter_mut().for_each(|word| word.reverse()),
                _ => {}
            }
        }
        for row in rows.chunks_exact_mut(row_bytes) {
            match (self, bits) {
                (Self::None, _) => {}
                (Self::Horizontal, 16) => {
                    let (words, _) = row.as_chunks_mut::<2>();
                    for at in samples..words.len() {
                        let sum = u16::from_le_bytes(words[at]).wrapping_add(u16::from_le_bytes(words[at - samples]));
                        words[at] = sum.to_le_bytes();
                    }
                }
                (Self::Horizontal, 32) => {
                    let (words, _) = row.as_chunks_mut::<4>();
                    for at in samples..words.len() {
                        let sum = u32::from_le_bytes(words[at]).wrapping_add(u32::from_le_bytes(words[at - samples]));
                        words[at] = sum.to_le_bytes();
                    }
                }
                (Self::Horizontal, _) => add_up(row, samples),
                (Self::FloatingPoint, _) => {
                    add_up(row, samples);
                    let sorted = row.to_vec();
                    let count = row.len() / 4;
                    for (index, word) in row.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        // The highest bytes of all samples come first.
                        *word = [3, 2, 1, 0].map(|byte| sorted[byte * count + index]);
                    }
                }
            }
        }
    }
}

fn add_up(row: &mut [u8], samples: usize) {
    for at in samples..row.len() {
        row[at] = row[at].wrapping_add(row[at - samples]);
    }
}
