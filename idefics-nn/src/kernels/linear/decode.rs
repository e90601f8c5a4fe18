//! What the row-major formats have in common: rows of bytes that become vectors step by step.

#![allow(unsafe_code)] // vectors and pointers

use std::ops::Range;

use super::super::vector::Vector;

/// Bytes of the longest step of any format.
pub(super) const MOST_STEP_BYTES: usize = 64;

/// Columns of the longest step of any format.
pub(super) const MOST_STEP: usize = 64;

/// A weight whose rows are stored one after another.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// `[d_out, row_bytes]`.
    pub(super) bytes: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) d_in: usize,
    /// Int8: `[d_out]`. Four bits: `[d_out, d_in / 64]`.
    pub(super) scales: &'a [f32],
    /// Four bits: what the codes stand for.
    pub(super) table: &'a [f32; 16],
}

/// Where a row's bytes and its blocks' scales begin.
#[derive(Clone, Copy)]
pub(super) struct Row {
    bytes: *const u8,
    /// Meaningless where the format has none.
    scales: *const f32,
}

impl Rows<'_> {
    /// Row `row`, which is all there: `row_bytes` of bytes and, if the format has any, a scale for each block.
    pub(super) fn row<V: Vector, D: Decode<V>>(&self, row: usize) -> Row {
        let bytes = &self.bytes[row * self.row_bytes..(row + 1) * self.row_bytes];
        let scales = if D::SCALED_STEPS {
            let steps = self.d_in / D::STEP;
            &self.scales[row * steps..(row + 1) * steps]
        } else {
            &[]
        };
        Row { bytes: bytes.as_ptr(), scales: scales.as_ptr() }
    }

    /// The factor of a whole row; 1 for formats that have none.
    pub(super) fn row_scale<V: Vector, D: Decode<V>>(&self, row: usize) -> f32 {
        if D::SCALED_ROWS { self.scales[row] } else { 1.0 }
    }
}

impl Row {
    /// The address of byte `at`, which may lie behind the row.
    #[inline(always)]
    pub(super) fn byte(self, at: usize) -> *const u8 {
        self.bytes.wrapping_add(at)
    }

    /// Step `step`, which lies inside the row.
    ///
    /// # Safety
    /// As [`Decode::step`].
    #[inline(always)]
    pub(super) unsafe fn step<V: Vector, D: Decode<V>>(self, rows: &Rows<'_>, step: usize) -> D::Step {
        // SAFETY: as the caller vouches.
        unsafe { D::step(self.byte(step * D::STEP_BYTES), self.scales.wrapping_add(step), rows.table) }
    }
}

/// The step that reaches over the end of a row, from a copy that is filled up with zeros.
pub(super) struct LastStep([u8; MOST_STEP_BYTES]);

impl LastStep {
    pub(super) const ZERO: Self = Self([0; MOST_STEP_BYTES]);

    /// Copies what is left of a row, `n` bytes from `at` on, fewer than [`MOST_STEP_BYTES`].
    ///
    /// # Safety
    /// The row has these bytes.
    #[inline(always)]
    pub(super) unsafe fn copy(row: Row, at: usize, n: usize) -> Self {
        let mut buffer = [0u8; MOST_STEP_BYTES];
        // SAFETY: as the caller vouches.
        unsafe { row.byte(at).copy_to_nonoverlapping(buffer.as_mut_ptr(), n) };
        Self(buffer)
    }

    /// The step. It may point into `self`.
    ///
    /// # Safety
    /// The machine has the instructions. The format has no scales a step: blocks that span rows go another way.
    #[inline(always)]
    pub(super) unsafe fn step<V: Vector, D: Decode<V>>(&self, rows: &Rows<'_>) -> D::Step {
        // SAFETY: as the caller vouches.
        unsafe { D::step(self.0.as_ptr(), &raw const NO_SCALE, rows.table) }
    }
}

/// What stands in for a scale that is not there.
static NO_SCALE: f32 = 0.0;

/// How the rows of one format become vectors of one instruction set.
///
/// # Safety of its methods
/// The machine has the instructions of `V`.
pub(super) trait Decode<V: Vector>: Copy {
    /// Columns of one step. A step may reach over the end of a row; what is there must be zero.
    const STEP: usize;
    /// Bytes of one step.
    const STEP_BYTES: usize;
    /// Whether a row has a factor.
    const SCALED_ROWS: bool = false;
    /// Whether a step has a factor.
    const SCALED_STEPS: bool = false;
    /// What the vectors of one step share.
    type Step: Copy;

    /// The column, counted from the beginning of the step, that stands at place `at` of the vectors.
    fn order(at: usize) -> usize {
        at
    }

    /// Prepares the step whose bytes are at `bytes`.
    ///
    /// # Safety
    /// `bytes` is valid for [`Decode::STEP_BYTES`] and, with [`Decode::SCALED_STEPS`], `scale` for one value, as long
    /// as the step is used.
    unsafe fn step(bytes: *const u8, scale: *const f32, table: &[f32; 16]) -> Self::Step;

    /// Vector `index` of the step: places `index · LANES ..` in [`Decode::order`], without the row's factor.
    unsafe fn vector(step: Self::Step, index: usize) -> V;

    /// Writes the whole step in the order of its columns, without the row's factor.
    ///
    /// # Safety
    /// `out` is valid for [`Decode::STEP`] values.
    #[inline(always)]
    unsafe fn store(step: Self::Step, out: *mut f32) {
        let mut index = 0;
        while index < Self::STEP / V::LANES {
            // SAFETY: as the caller vouches.
            unsafe { Self::vector(step, index).store(out.add(index * V::LANES)) };
            index += 1;
        }
    }
}

/// Expands rows `range` to f32 in the order of their columns, `[range.len(), d_in]`.
///
/// # Safety
/// The machine has the instructions of `V`, and the caller is compiled for them.
#[inline(always)]
pub(super) unsafe fn expand<V: Vector, D: Decode<V>>(rows: &Rows<'_>, range: Range<usize>, out: &mut [f32]) {
    assert_eq!(out.len(), range.len() * rows.d_in, "one output for each weight");
    let full_steps = rows.d_in / D::STEP;
    let rest = rows.d_in % D::STEP;
    for (out, row) in out.chunks_exact_mut(rows.d_in).zip(range) {
        let start = rows.row::<V, D>(row);
        // SAFETY: full steps lie inside the row, and so do the bytes and the values of the short one.
        unsafe {
            for step in 0..full_steps {
                D::store(start.step::<V, D>(rows, step), out.as_mut_ptr().add(step * D::STEP));
            }
            if rest > 0 {
                let done = full_steps * D::STEP_BYTES;
                let last = LastStep::copy(start, done, rows.row_bytes - done);
                let mut values = [0f32; MOST_STEP];
                D::store(last.step::<V, D>(rows), values.as_mut_ptr());
                out[full_steps * D::STEP..].copy_from_slice(&values[..rest]);
            }
        }
        if D::SCALED_ROWS {
            let scale = rows.row_scale::<V, D>(row);
            for value in out {
                *value *= scale;
            }
        }
    }
}

/// Names of the formats, for [`Decode`] to be implemented on.
pub(super) mod format {
    /// Four bytes a weight.
    #[derive(Clone, Copy)]
    pub(in super::super) struct F32;
    /// The upper half of an f32.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Bf16;
    /// IEEE half precision.
    #[derive(Clone, Copy)]
    pub(in super::super) struct F16;
    /// A byte a weight, a factor a row.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Int8;
    /// Half a byte a weight, a factor for 64, a table.
    #[derive(Clone, Copy)]
    pub(in super::super) struct FourBit;
}
