//! Four bits a weight for these kernels: a table of sixteen integers, blocks of 32, rows interleaved.
//!
//! Why a table, and why without a minimum: the error that is left of random weights (root mean square, in percent of
//! the weights'), with the best scale searched for each block.
//!
//! | format | bits | normal | Student t, 5 | Student t, 3 | normal, columns of unequal size |
//! |---|---|---|---|---|---|
//! | even steps, block 32, largest weight sets the scale | 4.5 | 9.76 | 12.33 | 14.53 | 12.82 |
//! | NF4, block 64, f32 scale | 4.5 | 9.22 | 10.53 | 12.44 | 10.83 |
//! | even steps, block 32 | 4.5 | 8.10 | 10.35 | 12.48 | 10.81 |
//! | even steps with a minimum, block 64 | 4.5 | 8.39 | 10.33 | 12.15 | 10.87 |
//! | even steps with a minimum, block 32 | 5.0 | 7.25 | 8.34 | 9.20 | 8.66 |
//! | **this table, block 32** | **4.5** | **7.40** | **8.10** | **8.86** | **8.20** |
//! | this table, block 64 | 4.25 | 8.15 | 9.37 | 10.87 | 9.55 |
//!
//! A minimum costs half a bit a weight and another product in the kernel, and is worth less than a table for weights
//! with large ones among them. Scales in bf16 lose nothing (8.10 to 8.10 at the third digit), and have the range of
//! f32.
//!
//! The table is that of Lloyd's algorithm for such weights, with 0 kept exact, rounded to eight bits: a kernel looks
//! it up in one instruction, and may multiply integers. It has one more entry below zero than above; the sign of the
//! scale decides which end that is.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::FormatError;
use super::error::{check_length, element_count};
use super::q4_fit::{LARGEST, fit};
use super::q4_table::{BLOCK, PANEL, TABLE, TILE};

/// `w = table[code] · scale[row, column / 32]`.
///
/// Bits a weight: 4.5. `d_out` is filled up to panels of 16 rows and `d_in` to blocks of 32 columns, with zeros.
///
/// Layout, so that sixteen lanes hold sixteen rows and a whole register is two operations from its codes:
/// - `codes`: `[panels, blocks, 4, 16, 4]` bytes. Byte `[p, b, group, row, i]` holds the code of row `16 p + row` and
///   column `32 b + 4 group + i` in its low half, that of the column 16 further on in its high half.
/// - `scales`: `[panels, blocks, 16]` in bf16; they may be negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Q4<'a> {
    d_out: usize,
    d_in: usize,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [bf16]>,
}

impl<'a> Q4<'a> {
    /// A weight over existing codes and scales.
    ///
    /// # Errors
    /// [`FormatError::Length`] for a part of another size, [`FormatError::Scale`] for a scale whose products are not
    /// finite, [`FormatError::TooLarge`].
    pub fn new(
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [bf16]>>,
        d_out: usize,
        d_in: usize,
    ) -> Result<Self, FormatError> {
        let scales = scales.into();
        let largest = f32::from(TABLE[0]);
        if let Some(index) = scales.iter().position(|scale| !(scale.to_f32() * largest).is_finite()) {
            let (value, expected) = (scales[index].to_f32(), "finite, also 127 times as large");
            return Err(FormatError::Scale { part: "q4 scales", index, value, expected });
        }
        Self::from_parts(codes.into(), scales, [d_out, d_in])
    }

    /// As [`Q4::new`], for scales that were looked at before.
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

    /// Quantises f32 weights, `[d_out, d_in]`, searching the best scale of each block.
    ///
    /// # Errors
    /// [`FormatError::Length`], [`FormatError::TooLarge`], [`FormatError::NonFinite`].
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

    /// `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.d_out, self.d_in]
    }

    /// `[panels, blocks, 4, 16, 4]` bytes of two codes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// `[panels, blocks, 16]`.
    pub fn scales(&self) -> &[bf16] {
        &self.scales
    }

    /// The code of one weight, of a row and a column that the panels have.
    pub(crate) fn code(&self, row: usize, column: usize) -> usize {
        let tile = row / PANEL * self.d_in.div_ceil(BLOCK) + column / BLOCK;
        let (at, shift) = place(row % PANEL, column % BLOCK);
        usize::from(self.codes[tile * TILE + at] >> shift & 15)
    }

    /// The scale of one block.
    pub(crate) fn scale(&self, row: usize, block: usize) -> bf16 {
        self.scales[(row / PANEL * self.d_in.div_ceil(BLOCK) + block) * PANEL + row % PANEL]
    }

    /// Codes and scales, in the order in which [`Self::codes`] and [`Self::scales`] have them.
    pub fn into_parts(self) -> (Vec<u8>, Vec<bf16>) {
        (self.codes.into_owned(), self.scales.into_owned())
    }

    /// Bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.scales())
    }

    /// Rows `rows` as f32, exactly: a table entry and a scale have fifteen bits together.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.d_out, "rows {rows:?} of {}", self.d_out);
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

/// Where a code lies in its tile: the byte, and the bits to shift by.
fn place(row: usize, column: usize) -> (usize, usize) {
    let (half, column) = (column / 16, column % 16);
    (column / 4 * (4 * PANEL) + row * 4 + column % 4, 4 * half)
}
