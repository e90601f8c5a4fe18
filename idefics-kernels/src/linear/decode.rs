//! Decoding of the row-major formats: rows of bytes become f32 vectors, step by step.

#![allow(unsafe_code)] // SIMD and raw pointers

use std::ops::Range;

use crate::vector::Vector;

/// Maximum number of bytes per step, over all formats.
const MAX_STEP_BYTES: usize = 64;

/// Maximum number of bytes that a step reads past its end.
const MAX_OVERREAD: usize = 4;

/// Maximum number of columns per step, over all formats.
pub(super) const MAX_STEP: usize = 128;

/// Maximum number of scales per step, over all formats.
const MAX_STEP_SCALES: usize = 2;

/// A weight in a row-major format.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Codes or values: `[d_out, row_bytes]`.
    pub(super) bytes: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) d_in: usize,
    /// Int8: one scale per row, `[d_out]`. Four-bit: one scale per block, `[d_out, d_in / 64]`. Otherwise empty.
    pub(super) scales: &'a [f32],
    /// Four-bit: the code table. Otherwise unused.
    pub(super) table: &'a [f32; 16],
}

/// Pointers to the bytes and the block scales of one row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    bytes: *const u8,
    /// Must not be read if the format has no block scales.
    scales: *const f32,
}

impl Rows<'_> {
    /// Returns row `row`. The bounds are checked: the row has `row_bytes` bytes and all its block scales.
    pub(super) fn row<V: Vector, D: Decode<V>>(&self, row: usize) -> Row {
        let bytes = &self.bytes[row * self.row_bytes..(row + 1) * self.row_bytes];
        let n_scales = self.d_in * D::STEP_SCALES / D::STEP;
        let scales = &self.scales[row * n_scales..(row + 1) * n_scales]; // empty if steps have no scales
        Row { bytes: bytes.as_ptr(), scales: scales.as_ptr() }
    }

    /// The scale of a whole row; 1 for formats without row scales.
    pub(super) fn row_scale<V: Vector, D: Decode<V>>(&self, row: usize) -> f32 {
        if D::SCALED_ROWS { self.scales[row] } else { 1.0 }
    }
}

impl Row {
    /// The address of byte `at`, which may be past the end of the row.
    #[inline(always)]
    pub(super) fn byte(self, at: usize) -> *const u8 {
        self.bytes.wrapping_add(at)
    }

    /// Decodes step `step`, which is entirely inside the row.
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
            "step {step} reads past the end of the weight"
        );
        // SAFETY: guaranteed by the caller.
        unsafe { D::step(bytes, scales, rows.table) }
    }

    /// Copies step `step`, which begins inside the row. If the row ends inside the step, copies the rest of the row.
    ///
    /// # Safety
    /// The row belongs to `rows`.
    #[inline(always)]
    pub(super) unsafe fn last_step<V: Vector, D: Decode<V>>(self, rows: &Rows<'_>, step: usize) -> LastStep {
        let mut last = LastStep::ZERO;
        let done = step * D::STEP_BYTES;
        let scales_done = step * D::STEP_SCALES;
        let n_scales = (rows.d_in * D::STEP_SCALES / D::STEP - scales_done).min(D::STEP_SCALES);
        let n = (rows.row_bytes - done).min(D::STEP_BYTES);
        // SAFETY: the row has these bytes and scales, and the buffers have room for the longest step.
        unsafe {
            self.byte(done).copy_to_nonoverlapping(last.bytes.as_mut_ptr(), n);
            self.scales.wrapping_add(scales_done).copy_to_nonoverlapping(last.scales.as_mut_ptr(), n_scales);
        }
        last
    }
}

/// A zero-padded copy of a step that would read past the end of the row or of the weight.
pub(super) struct LastStep {
    bytes: [u8; MAX_STEP_BYTES + MAX_OVERREAD],
    scales: [f32; MAX_STEP_SCALES],
}

impl LastStep {
    pub(super) const ZERO: Self = Self { bytes: [0; MAX_STEP_BYTES + MAX_OVERREAD], scales: [0.0; MAX_STEP_SCALES] };

    /// Decodes the step. The result may point into `self`.
    ///
    /// # Safety
    /// The CPU supports the instruction set of `V`.
    #[inline(always)]
    pub(super) unsafe fn step<V: Vector, D: Decode<V>>(&self, rows: &Rows<'_>) -> D::Step {
        // SAFETY: guaranteed by the caller.
        unsafe { D::step(self.bytes.as_ptr(), self.scales.as_ptr(), rows.table) }
    }
}

/// Decodes the rows of a format into vectors of an instruction set.
///
/// # Safety of its methods
/// The CPU supports the instruction set of `V`.
pub(super) trait Decode<V: Vector>: Copy {
    /// Columns per step. A partial last step must be padded with zeros.
    const STEP: usize;
    /// Bytes per step.
    const STEP_BYTES: usize;
    /// Whether each row has a scale.
    const SCALED_ROWS: bool = false;
    /// Block scales per step. A partial last step has one scale per block that begins in it.
    const STEP_SCALES: usize = 0;
    /// Whether the lanes of a step have their own scales, which [`Decode::vector`] does not apply.
    const SCALED_LANES: bool = false;
    /// Bytes that a step reads past its end and ignores.
    const OVERREAD: usize = 0;
    /// State that the vectors of one step share.
    type Step: Copy;

    /// Returns the column, within a step, whose value is in lane `at`. Lanes are counted over all vectors of the step.
    fn order(at: usize) -> usize {
        at
    }

    /// Prepares the step at `bytes`.
    ///
    /// # Safety
    /// While the step is in use, `bytes` is valid for [`Decode::STEP_BYTES`] plus [`Decode::OVERREAD`] bytes, and
    /// `scales` for [`Decode::STEP_SCALES`] values.
    unsafe fn step(bytes: *const u8, scales: *const f32, table: &[f32; 16]) -> Self::Step;

    /// Returns vector `index` of the step: the values in the `LANES` lanes from `index · LANES` (counted as in
    /// [`Decode::order`]), without the scale of the row.
    unsafe fn vector(step: Self::Step, index: usize) -> V;

    /// Returns the scales of the lanes, which are the same for all vectors of the step.
    ///
    /// # Safety
    /// As [`Decode::step`]; the pointers of the step are still valid.
    #[inline(always)]
    unsafe fn lane_scales(_step: Self::Step) -> V {
        unreachable!("must be called only if SCALED_LANES is true")
    }

    /// Writes the whole step in column order, without the row's scale.
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

/// Expands rows `range` to f32 in column order, `[range.len(), d_in]`.
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
        // SAFETY: full steps are inside the row; a partial step is copied and padded first.
        unsafe {
            for step in 0..full_steps {
                D::store(start.step::<V, D>(rows, step), out.as_mut_ptr().add(step * D::STEP));
            }
            if rest > 0 {
                let last = start.last_step::<V, D>(rows, full_steps);
                let mut values = [0f32; MAX_STEP];
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

/// Marker types of the formats. They implement [`Decode`](super::Decode).
pub(super) mod format {
    /// f32.
    #[derive(Clone, Copy)]
    pub(crate) struct F32;
    /// bf16: the upper half of an f32.
    #[derive(Clone, Copy)]
    pub(crate) struct Bf16;
    /// f16: IEEE half precision.
    #[derive(Clone, Copy)]
    pub(crate) struct F16;
    /// One byte per weight, one scale per row.
    #[derive(Clone, Copy)]
    pub(crate) struct Int8;
    /// Four bits per weight, one scale per 64 weights, a code table.
    #[derive(Clone, Copy)]
    pub(crate) struct FourBit;
}
