//! Four bits per weight, designed for these kernels: each code selects one of sixteen integers in a table, and 32
//! columns of a row share a scale. [`Q4`] has the layout. The scales are chosen in `q4_fit.rs`. The products are in
//! `linear/q4.rs` (at most eight rows of activations) and `linear/panels.rs`.
//!
//! The table below shows why this format has a table of values and no minimum per block. It lists the errors of random
//! weights after quantisation: root mean squares, in percent of the root mean square of the weights. The best scale of
//! each block was searched for, except where noted.
//!
//! | format | bits | normal | Student t, ν = 5 | Student t, ν = 3 | normal, columns of unequal size |
//! |---|---|---|---|---|---|
//! | uniform steps, block 32, scale set by the largest weight | 4.5 | 9.76 | 12.33 | 14.53 | 12.82 |
//! | NF4, block 64, f32 scale | 4.5 | 9.22 | 10.53 | 12.44 | 10.83 |
//! | uniform steps, block 32 | 4.5 | 8.10 | 10.35 | 12.48 | 10.81 |
//! | uniform steps with a minimum, block 64 | 4.5 | 8.39 | 10.33 | 12.15 | 10.87 |
//! | uniform steps with a minimum, block 32 | 5.0 | 7.25 | 8.34 | 9.20 | 8.66 |
//! | **this table, block 32** | **4.5** | **7.40** | **8.10** | **8.86** | **8.20** |
//! | this table, block 64 | 4.25 | 8.15 | 9.37 | 10.87 | 9.55 |
//!
//! A minimum costs half a bit per weight and another product in the kernel. For weights with outliers, it reduces the
//! error less than a table of values does. Scales in bf16 give the same error as scales in f32 (8.10 for uniform
//! steps), and they have the range of f32.
//!
//! The table of values results from Lloyd's algorithm on such weights, with 0 kept exact and the other values rounded
//! to eight bits. A kernel looks up a value in one instruction and may multiply values as integers. The table has one
//! more entry below zero than above zero. The sign of the scale decides which end gets the extra entry.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::FormatError;
use super::error::{check_length, element_count};
use super::q4_fit::{LARGEST, fit};
use super::q4_table::{BLOCK, PANEL, TABLE, TILE};

/// A q4 weight: `w = table[code] · scale[row, column / 32]`.
///
/// Bits per weight: 4.5. `d_out` is padded to panels of 16 rows and `d_in` to blocks of 32 columns, with zeros.
///
/// The layout puts sixteen rows into the sixteen lanes of a register, so that decoding a register of values takes two
/// operations. The parts are:
/// - `codes`: `[panels, blocks, 4, 16, 4]` bytes. Byte `[p, b, group, row, i]` holds two codes of row `16 p + row`:
///   column `32 b + 4 group + i` in its low half, and column `32 b + 4 group + i + 16` in its high half.
/// - `scales`: `[panels, blocks, 16]` in bf16; they may be negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Q4<'a> {
    d_out: usize,
    d_in: usize,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [bf16]>,
}

impl<'a> Q4<'a> {
    /// Creates a weight from existing codes and scales, in the layout of [`Q4`].
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of the wrong size, [`FormatError::TooLarge`], and [`FormatError::Scale`]
    /// for a scale that is not finite when multiplied by 127.
    pub fn new(
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [bf16]>>,
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        let scales = scales.into();
        let largest = f32::from(TABLE[0]);
        if let Some(index) = scales.iter().position(|scale| !(scale.to_f32() * largest).is_finite()) {
            let (value, expected) = (scales[index].to_f32(), "a number that stays finite when multiplied by 127");
            return Err(FormatError::Scale { part: "q4 scales", index, value, expected });
        }
        Self::from_parts(codes.into(), scales, [d_out, d_in])
    }

    /// Creates a weight like [`Q4::new`], without checking the scales. The caller must have checked them.
    ///
    /// # Errors
    /// [`FormatError::Length`], [`FormatError::TooLarge`].
    pub fn from_parts(
        codes: Cow<'a, [u8]>,
        scales: Cow<'a, [bf16]>,
        [d_out, d_in]: [usize; 2],
    ) -> Result<Self, FormatError> {
        let filled = d_out.checked_next_multiple_of(PANEL).zip(d_in.checked_next_multiple_of(BLOCK));
        filled.map_or(Err(FormatError::TooLarge { d_out, d_in }), |(rows, columns)| element_count(rows, columns))?;
        let tiles = d_out.div_ceil(PANEL) * d_in.div_ceil(BLOCK);
        check_length("q4 codes", [d_out, d_in], tiles * TILE, codes.len())?;
        check_length("q4 scales", [d_out, d_in], tiles * PANEL, scales.len())?;
        Ok(Self { d_out, d_in, codes, scales })
    }

    /// Quantises f32 weights, `[d_out, d_in]`, and searches for the best scale of each block.
    ///
    /// # Errors
    /// [`FormatError::Length`] for the wrong number of weights, [`FormatError::TooLarge`], [`FormatError::NonFinite`].
    pub fn quantize(weights: &[f32], d_out: usize, d_in: usize) -> Result<Q4<'static>, FormatError> {
        check_length("weights", [d_out, d_in], element_count(d_out, d_in)?, weights.len())?;
        if let Some(index) = weights.iter().position(|weight| weight.is_nan() || weight.abs() > LARGEST) {
            return Err(FormatError::NonFinite { index, value: weights[index] });
        }
        let blocks = d_in.div_ceil(BLOCK);
        let tiles = d_out.div_ceil(PANEL) * blocks;
        let mut codes = vec![0u8; tiles * TILE];
        let mut scales = vec![bf16::ZERO; tiles * PANEL];
        codes.par_chunks_mut(TILE).zip(scales.par_chunks_mut(PANEL)).enumerate().for_each(|(tile, (codes, scales))| {
            let (first_row, first_column) = (tile / blocks * PANEL, tile % blocks * BLOCK);
            let mut rows = [[0f32; BLOCK]; PANEL];
            for (row, block) in rows.iter_mut().enumerate().take(d_out - first_row) {
                let columns = first_column..d_in.min(first_column + BLOCK);
                block[..columns.len()].copy_from_slice(&weights[(first_row + row) * d_in..][columns]);
            }
            for (row, (scale, fit)) in scales.iter_mut().zip(fit(&rows)).enumerate() {
                *scale = fit.scale;
                for (column, code) in fit.codes.iter().enumerate() {
                    let (at, shift) = place(row, column);
                    codes[at] |= code << shift;
                }
            }
        });
        Q4::new(codes, scales, d_out, d_in)
    }

    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// The codes, `[panels, blocks, 4, 16, 4]` bytes of two codes each.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales, `[panels, blocks, 16]`.
    pub fn scales(&self) -> &[bf16] {
        &self.scales
    }

    /// Returns the code of one weight. `row` and `column` may be in the padding.
    pub(crate) fn code(&self, row: usize, column: usize) -> usize {
        let tile = row / PANEL * self.d_in.div_ceil(BLOCK) + column / BLOCK;
        let (at, shift) = place(row % PANEL, column % BLOCK);
        usize::from(self.codes[tile * TILE + at] >> shift & 15)
    }

    /// The scale of one block.
    pub(crate) fn scale(&self, row: usize, block: usize) -> bf16 {
        self.scales[(row / PANEL * self.d_in.div_ceil(BLOCK) + block) * PANEL + row % PANEL]
    }

    /// Codes and scales, in the layout of [`Self::codes`] and [`Self::scales`].
    pub fn into_parts(self) -> (Vec<u8>, Vec<bf16>) {
        (self.codes.into_owned(), self.scales.into_owned())
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.scales())
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`. The values are exact, because the product of a table entry and
    /// a scale has at most fifteen significant bits.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.d_out, "rows {rows:?} are out of range for {} rows", self.d_out);
        assert_eq!(out.len(), rows.len() * self.d_in, "`out` must hold one value per weight");
        if self.d_in == 0 {
            return;
        }
        let blocks = self.d_in.div_ceil(BLOCK);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.d_in)) {
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                let tile = row / PANEL * blocks + block;
                let scale = self.scales[tile * PANEL + row % PANEL].to_f32();
                for (column, out) in out.iter_mut().enumerate() {
                    let (at, shift) = place(row % PANEL, column);
                    let code = self.codes[tile * TILE + at] >> shift & 15;
                    *out = f32::from(TABLE[usize::from(code)]) * scale;
                }
            }
        }
    }
}

/// Position of a code in its tile: the index of its byte, and the right shift that extracts it.
fn place(row: usize, column: usize) -> (usize, usize) {
    let (half, column) = (column / 16, column % 16);
    (column / 4 * (4 * PANEL) + row * 4 + column % 4, 4 * half)
}
