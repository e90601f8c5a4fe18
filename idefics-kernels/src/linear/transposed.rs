//! The product with the weight instead of its transpose: the backward pass through a layer with a frozen weight.
//!
//! Panels of weight rows are expanded to f32 one after another, by all threads. Then the threads add the panel's
//! contribution to the output, each to its own columns. Results are therefore bitwise equal on any number of threads.

#![allow(unsafe_code)] // gemm takes raw pointers; tasks write disjoint parts of one slice

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::panels::expand;
use crate::Isa;
use crate::formats::{Q4_PANEL, Weight};
use crate::shared::{SharedOut, with_scratch};

/// Maximum number of rows in a panel: the number of products that gemm adds before it writes to memory.
const ROWS: usize = 256;

/// Maximum scratch memory, in bytes. A panel has at least sixteen rows, even if they need more.
const PANEL_BYTES: usize = 16 << 20;

/// Columns per task.
const COLUMNS: usize = 256;

pub(super) fn product(isa: Isa, gradient: &[f32], n_rows: usize, weight: &Weight<'_>, out: &mut [f32]) {
    let [d_out, d_in] = weight.dims();
    let rows = (PANEL_BYTES / (d_in * size_of::<f32>())).clamp(Q4_PANEL, ROWS) / Q4_PANEL * Q4_PANEL;
    if d_out == 0 {
        return out.fill(0.0);
    }
    let out = SharedOut::new(out);
    if let Weight::F32(weight) = weight {
        // f32 needs no expansion: the whole weight is one panel.
        return add_panel(isa, gradient, n_rows, [d_out, d_in], 0..d_out, weight.values(), out);
    }
    with_scratch(rows.min(d_out) * d_in, |scratch| {
        for first in (0..d_out).step_by(rows) {
            let range = first..d_out.min(first + rows);
            let panel = &mut scratch[..range.len() * d_in];
            panel.par_chunks_mut(Q4_PANEL * d_in).enumerate().for_each(|(chunk, values)| {
                let first = range.start + chunk * Q4_PANEL;
                expand(isa, weight, first..first + values.len() / d_in, values);
            });
            add_panel(isa, gradient, n_rows, [d_out, d_in], range, panel, out);
        }
    });
}

/// Adds `gradient[:, range] · panel` to `out`, or overwrites it if `range` starts at 0. `panel` is
/// `[range.len(), d_in]`.
fn add_panel(
    isa: Isa,
    gradient: &[f32],
    n_rows: usize,
    [d_out, d_in]: [usize; 2],
    range: Range<usize>,
    panel: &[f32],
    out: SharedOut<'_>,
) {
    assert_eq!(panel.len(), range.len() * d_in, "the panel must hold `range.len()` rows");
    assert_eq!((gradient.len(), out.len()), (n_rows * d_out, n_rows * d_in), "the caller must check the lengths");
    assert!(!range.is_empty() && range.end <= d_out, "rows {range:?} are out of range for {d_out} rows");
    if isa == Isa::Plain {
        return (0..n_rows).into_par_iter().for_each(|n| {
            // SAFETY: tasks write disjoint rows.
            let out = unsafe { out.slice(n * d_in, d_in) };
            if range.start == 0 {
                out.fill(0.0);
            }
            for (feature, row) in range.clone().zip(panel.chunks_exact(d_in)) {
                let factor = gradient[n * d_out + feature];
                out.iter_mut().zip(row).for_each(|(out, weight)| *out += factor * weight);
            }
        });
    }
    (0..d_in.div_ceil(COLUMNS)).into_par_iter().for_each(|task| {
        let columns = task * COLUMNS..d_in.min((task + 1) * COLUMNS);
        // The transposed product: [columns, n_rows] += panel transposed [columns, rows] · gradient transposed
        // [rows, n_rows].
        // SAFETY: by the assertions above, all reads are inside `panel` and `gradient`, and all writes are inside
        // `out`; tasks write disjoint columns.
        unsafe {
            gemm::gemm(
                columns.len(),
                n_rows,
                range.len(),
                out.pointer(columns.start),
                d_in as isize,
                1,
                range.start > 0,
                panel.as_ptr().add(columns.start),
                d_in as isize,
                1,
                gradient.as_ptr().add(range.start),
                d_out as isize,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    });
}
