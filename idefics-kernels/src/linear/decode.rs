//! What the row-major formats have in common: rows of bytes that become vectors step by step.

#![allow(unsafe_code)] // SIMD and raw pointers

use std::ops::Range;

use crate::vector::Vector;

/// Bytes of the longest step of any format.
const MOST_STEP_BYTES: usize = 64;

/// Bytes that a step may read behind itself.
const MOST_OVERREAD: usize = 4;

/// Columns of the longest step of any format.
pub(super) const MOST_STEP: usize = 128;

/// Scales of the longest step of any format.
const MOST_STEP_SCALES: usize = 2;

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
        let n_scales = self.d_in * D::STEP_SCALES / D::STEP;
        let scales = &self.scales[row * n_scales..(row + 1) * n_scales]; // none where steps have none
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
        let (bytes, scales) = (self.byte(step * D::STEP_BYTES), self.scales.wrapping_add(step * D::STEP_SCALES));
        debug_assert!(
            bytes.addr() + D::STEP_BYTES + D::OVERREAD <= rows.bytes.as_ptr_range().end.addr()
                && scales.wrapping_add(D::STEP_SCALES).addr()
                    <= rows.scales.as_ptr_range().end.addr().max(scales.addr()),
            "step {step} reaches over the end of the weight"
        );
        // SAFETY: guaranteed by the caller.
        unsafe { D::step(bytes, scales, rows.table) }
    }

    /// A copy of what the row has of step `step`, which begins inside it.
    ///
    /// # Safety
    /// The row is one of `rows`.
    #[inline(always)]
    pub(super) unsafe fn last_step<V: Vector, D: Decode<V>>(self, rows: &Rows<'_>, step: usize) -> LastStep {
        let mut last = LastStep::ZERO;
        let done = step * D::STEP_BYTES;
        let scales_done = step * D::STEP_SCALES;
        let n_scales = (rows.d_in * D::STEP_SCALES / D::STEP - scales_done).min(D::STEP_SCALES);
        let n = (rows.row_bytes - done).min(D::STEP_BYTES);
        // SAFETY: the row has these bytes and scales, and no step is longer than the buffers.
        unsafe {
            self.byte(done).copy_to_nonoverlapping(last.bytes.as_mut_ptr(), n);
            self.scales.wrapping_add(scales_done).copy_to_nonoverlapping(last.scales.as_mut_ptr(), n_scales);
        }
        last
    }
}

/// A step that reaches over the end of a row or of the memory, from a copy that is filled up with zeros.
pub(super) struct LastStep {
    bytes: [u8; MOST_STEP_BYTES + MOST_OVERREAD],
    scales: [f32; MOST_STEP_SCALES],
}

impl LastStep {
    pub(super) const ZERO: Self = Self { bytes: [0; MOST_STEP_BYTES + MOST_OVERREAD], scales: [0.0; MOST_STEP_SCALES] };

    /// The step. It may point into `self`.
    ///
    /// # Safety
    /// The CPU supports the enabled target features.
    #[inline(always)]
    pub(super) unsafe fn step<V: Vector, D: Decode<V>>(&self, rows: &Rows<'_>) -> D::Step {
        // SAFETY: guaranteed by the caller.
        unsafe { D::step(self.bytes.as_ptr(), self.scales.as_ptr(), rows.table) }
    }
}

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
    /// Factors of a step; what is left of a row after the last step has as many as begin in it.
    const STEP_SCALES: usize = 0;
    /// Whether the lanes of a step have factors of their own, which [`Decode::vector`] leaves out.
    const SCALED_LANES: bool = false;
    /// Bytes behind a step that are read with it, and ignored.
    const OVERREAD: usize = 0;
    /// What the vectors of one step share.
    type Step: Copy;

    /// The column, counted from the beginning of the step, that stands at place `at` of the vectors.
    fn order(at: usize) -> usize {
        at
    }

    /// Prepares the step whose bytes are at `bytes`.
    ///
    /// # Safety
    /// `bytes` is valid for [`Decode::STEP_BYTES`] and [`Decode::OVERREAD`], and `scales` for [`Decode::STEP_SCALES`]
    /// values, as long as the step is used.
    unsafe fn step(bytes: *const u8, scales: *const f32, table: &[f32; 16]) -> Self::Step;

    /// Vector `index` of the step: places `index · LANES ..` in [`Decode::order`], without the row's factor.
    unsafe fn vector(step: Self::Step, index: usize) -> V;

    /// The factors of the lanes, the same for all vectors of the step.
    ///
    /// # Safety
    /// As [`Decode::vector`].
    #[inline(always)]
    unsafe fn lane_scales(_step: Self::Step) -> V {
        unreachable!("only with SCALED_LANES")
    }

    /// Writes the whole step in the order of its columns, without the row's factor.
    ///
    /// # Safety
    /// `out` is valid for [`Decode::STEP`] values.
    #[inline(always)]
    unsafe fn store(step: Self::Step, out: *mut f32) {
        let mut index = 0;
        while index < Self::STEP / V::LANES {
            // SAFETY: guaranteed by the caller.
            unsafe { Self::vector(step, index).store(out.add(index * V::LANES)) };
            index += 1;
        }
    }
}

/// Expands rows `range` to f32 in the order of their columns, `[range.len(), d_in]`.
///
/// # Safety
/// The CPU supports the instruction set of `V`, and the caller is compiled for it.
#[inline(always)]
pub(super) unsafe fn expand<V: Vector, D: Decode<V>>(rows: &Rows<'_>, range: Range<usize>, out: &mut [f32]) {
    const { assert!(!D::SCALED_LANES && D::OVERREAD == 0) };
    assert_eq!(out.len(), range.len() * rows.d_in, "`out` must hold one value per weight");
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
                let last = start.last_step::<V, D>(rows, full_steps);
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
    pub(crate) struct F32;
    /// The upper half of an f32.
    #[derive(Clone, Copy)]
    pub(crate) struct Bf16;
    /// IEEE half precision.
    #[derive(Clone, Copy)]
    pub(crate) struct F16;
    /// A byte a weight, a factor a row.
    #[derive(Clone, Copy)]
    pub(crate) struct Int8;
    /// Half a byte a weight, a factor for 64, a table.
    #[derive(Clone, Copy)]
    pub(crate) struct FourBit;
}
