//! Few rows of activations times a weight in a row-major format.
//!
//! Several weight rows are processed together, so that each load of activations is used several times. The rows are far
//! apart, because memory delivers several streams faster than one stream. Their bytes are prefetched. The activations
//! are copied once, into the order of the format's vectors.

#![allow(unsafe_code)] // SIMD and raw pointers

use std::ops::Range;

use bytemuck::NoUninit;

use super::decode::{Decode, LastStep, MAX_STEP, Row, Rows};
use super::{Product, by_format, on_isa};
use crate::formats::{FourBitType, Weight};
use crate::shared::with_scratch;
use crate::vector::Vector;

/// The number of weight rows per task is a multiple of this constant. Kernels process groups of several rows; the
/// constant is a multiple of every group size.
const UNIT: usize = 12;

/// Maximum number of groups of weight rows that process a chunk of columns before they all go on to the next chunk.
const GROUPS: usize = 8;

/// Activation values per chunk: half of a 32 KiB L1 cache.
const CHUNK_VALUES: usize = 4096;

/// Prefetch distance in each row, in bytes.
const PREFETCH_DISTANCE: usize = 2048;

/// Activations, copied into a format's column order.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    /// `[n_rows, stride]`, padded with zero columns and zero rows.
    pub(super) values: &'a [f32],
    /// Number of rows, padded to 1, 2, 4 or 8.
    pub(super) n_rows: usize,
    /// Distance between rows, in values: at least `d_in`, padded to whole steps.
    pub(super) stride: usize,
}

/// The order in which a format's vectors hold the columns of one step (the columns that are decoded together).
pub(super) struct Order {
    /// Columns per step.
    pub(super) step: usize,
    /// The column at each position.
    pub(super) columns: [u8; MAX_STEP],
}

impl Order {
    /// The column order of a format on an instruction set.
    pub(super) fn of<V: Vector, D: Decode<V>>() -> Self {
        let mut columns = [0u8; MAX_STEP];
        for (at, column) in columns[..D::STEP].iter_mut().enumerate() {
            *column = D::order(at) as u8;
        }
        Self { step: D::STEP, columns }
    }

    /// Natural order, for steps of `step` columns.
    pub(super) fn natural(step: usize) -> Self {
        Self { step, columns: std::array::from_fn(|at| at as u8) }
    }

    fn is_natural(&self) -> bool {
        (0..self.step).all(|at| usize::from(self.columns[at]) == at)
    }
}

impl<'a> Rows<'a> {
    /// The rows of a weight in a row-major format.
    pub(super) fn of(weight: &'a Weight<'_>) -> Self {
        let (bytes, scales) = match weight {
            Weight::F32(weight) => (bytes_of(weight.values()), &[][..]),
            Weight::Bf16(weight) => (bytes_of(weight.values()), &[][..]),
            Weight::F16(weight) => (bytes_of(weight.values()), &[][..]),
            Weight::Int8(weight) => (bytes_of(weight.codes()), weight.scales()),
            Weight::FourBit(weight) => (weight.codes(), weight.absmax()),
            Weight::Q4(_) | Weight::Int4(_) | Weight::Blocks(_) => {
                unreachable!("{} has its own kernels", weight.name())
            }
        };
        let table = match weight {
            Weight::FourBit(weight) => weight.kind().table(),
            _ => FourBitType::Nf4.table(), // not used by other formats
        };
        let [d_out, d_in] = weight.dims();
        Self { bytes, row_bytes: bytes.len() / d_out, d_in, scales, table }
    }
}

/// The bytes of a slice of numbers.
fn bytes_of<T: NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Computes the product for at most [`super::MAX_GEMV_ROWS`] rows of activations.
pub(super) fn product(product: &Product<'_>, weight: &Weight<'_>) {
    let rows = Rows::of(weight);
    let order = by_format!(weight, Format => on_isa!(product.isa, isa => isa::order::<Format>(rows.d_in)));
    with_packed(product, &order, |packed| {
        product.split(weight.bytes(), UNIT, |range| {
            // SAFETY: `Product::checked` has checked CPU support, and tasks write disjoint ranges.
            by_format!(weight, Format => on_isa!(product.isa, isa => unsafe { isa::thin::<Format>(&rows, range, packed, product) }));
        });
    });
}

/// Calls `work` with the activations in a format's order, aligned to a cache line. Makes no copy if they already have
/// this order and alignment.
pub(super) fn with_packed<R>(product: &Product<'_>, order: &Order, work: impl FnOnce(Packed<'_>) -> R) -> R {
    let Product { x, n_rows, d_in, .. } = *product;
    let n_filled = n_rows.next_power_of_two();
    let stride = match n_filled {
        1 => d_in.next_multiple_of(order.step),
        // The stride is an odd number of cache lines, because rows at a distance of a power of two would evict each
        // other from the cache.
        _ => d_in.next_multiple_of(order.step.max(32)) + 16,
    };
    let is_natural = order.is_natural();
    if is_natural && n_rows == 1 && stride == d_in && x.as_ptr().addr().is_multiple_of(64) {
        return work(Packed { values: x, n_rows, stride });
    }
    with_scratch(n_filled * stride, |values| {
        for (packed, x) in values.chunks_exact_mut(stride).zip(x.chunks_exact(d_in)) {
            if is_natural {
                packed[..d_in].copy_from_slice(x);
                packed[d_in..].fill(0.0);
                continue;
            }
            // The padding after the last step is never read.
            for (packed, x) in packed.chunks_exact_mut(order.step).zip(x.chunks(order.step)) {
                let mut step = [0f32; MAX_STEP];
                step[..x.len()].copy_from_slice(x);
                for (packed, column) in packed.iter_mut().zip(&order.columns) {
                    *packed = step[usize::from(*column) % MAX_STEP];
                }
            }
        }
        values[n_rows * stride..].fill(0.0);
        work(Packed { values, n_rows: n_filled, stride })
    })
}

/// Computes the output features `range`.
///
/// # Safety
/// The CPU supports the instruction set of `V`, the caller is compiled for it, and no other task writes these features.
#[inline(always)]
pub(super) unsafe fn thin<V: Vector, D: Decode<V>>(
    rows: &Rows<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    // The number of weight rows is chosen so that sums and operands fit the registers.
    // SAFETY: guaranteed by the caller.
    unsafe {
        match (packed.n_rows, V::REGISTERS) {
            (1, _) => groups::<V, D, 4, 1>(rows, range, packed, product),
            (2, _) => groups::<V, D, 4, 2>(rows, range, packed, product),
            (4, 32) => groups::<V, D, 4, 4>(rows, range, packed, product),
            (4, _) => groups::<V, D, 2, 4>(rows, range, packed, product),
            (8, 32) => groups::<V, D, 3, 8>(rows, range, packed, product),
            (8, _) => groups::<V, D, 1, 8>(rows, range, packed, product),
            (n_rows, _) => unreachable!("{n_rows} rows should have been padded to 1, 2, 4 or 8"),
        }
    }
}

/// Computes [`thin`] with `R` weight rows and `N` activation rows at a time. Group `g` has every `n_groups`-th row of
/// the range, starting at row `g`. In the next group, each of the `R` streams therefore continues with the adjacent
/// row.
///
/// If several rows of activations do not fit the L1 cache together, the groups are processed in blocks of [`GROUPS`]; a
/// block processes one chunk of columns after another.
#[inline(always)]
unsafe fn groups<V: Vector, D: Decode<V>, const R: usize, const N: usize>(
    rows: &Rows<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    assert!(packed.n_rows == N && packed.values.len() >= N * packed.stride);
    assert!(packed.stride >= rows.d_in.next_multiple_of(D::STEP), "activations must be padded to whole steps");
    let steps = rows.d_in / D::STEP; // full steps only
    let n_chunks = if N == 1 { 1 } else { (N * rows.d_in).div_ceil(CHUNK_VALUES) };
    let (chunk, block) = (steps.div_ceil(n_chunks).max(1), if n_chunks == 1 { 1 } else { GROUPS });
    let n_groups = range.len().div_ceil(R);
    for first in (0..n_groups).step_by(block) {
        let groups = first..n_groups.min(first + block);
        // SAFETY: guaranteed by the caller; full steps are inside their rows, and the activations are padded.
        unsafe {
            let mut sums = [[[V::splat(0.0); N]; R]; GROUPS];
            for from in (0..steps).step_by(chunk) {
                let to = steps.min(from + chunk);
                for (group, sums) in groups.clone().zip(&mut sums) {
                    let group = Group::<R>::at::<V, D>(rows, &range, group);
                    let to = to.min(group.steps_in_place::<V, D>(rows));
                    let mut partial = *sums;
                    for step in from..to {
                        let ahead = step * D::STEP_BYTES + PREFETCH_DISTANCE;
                        // After this chunk, the same chunk of the next group is read.
                        let ahead = match ahead < to * D::STEP_BYTES {
                            true => ahead,
                            false => ahead + rows.row_bytes - (to - from) * D::STEP_BYTES,
                        };
                        let mut decoded = [group.starts[0].step::<V, D>(rows, step); R];
                        V::prefetch(group.starts[0].byte(ahead));
                        for r in 1..R {
                            decoded[r] = group.starts[r].step::<V, D>(rows, step);
                            V::prefetch(group.starts[r].byte(ahead));
                        }
                        multiply::<V, D, R, N>(decoded, packed, step, &mut partial);
                    }
                    *sums = partial;
                }
            }
            for (group, sums) in groups.zip(&mut sums) {
                let group = Group::<R>::at::<V, D>(rows, &range, group);
                group.last_steps::<V, D, N>(rows, packed, sums);
                group.write::<V, D, N>(rows, range.end, product, sums);
            }
        }
    }
}

/// Weight rows that are processed together.
struct Group<const R: usize> {
    features: [usize; R],
    starts: [Row; R],
}

impl<const R: usize> Group<R> {
    /// The rows of group `group` in a range. Rows past the end of the range are replaced by its last row.
    #[inline(always)]
    fn at<V: Vector, D: Decode<V>>(rows: &Rows<'_>, range: &Range<usize>, group: usize) -> Self {
        let n_groups = range.len().div_ceil(R);
        let features = std::array::from_fn(|r| range.start + group + r * n_groups);
        let mut starts = [rows.row::<V, D>(features[0]); R];
        for r in 1..R {
            starts[r] = rows.row::<V, D>(features[r].min(range.end - 1));
        }
        Self { features, starts }
    }

    /// Returns the number of full steps that can be read in place. A format whose steps read past their end must not
    /// read the last full step of the last row of the weight in place.
    #[inline(always)]
    fn steps_in_place<V: Vector, D: Decode<V>>(&self, rows: &Rows<'_>) -> usize {
        let is_last = self.features[R - 1] + 1 >= rows.bytes.len() / rows.row_bytes.max(1);
        (rows.d_in / D::STEP).saturating_sub(usize::from(D::OVERREAD > 0 && is_last))
    }

    /// Adds the products of the remaining columns. These are read from padded copies of the row ends.
    #[inline(always)]
    unsafe fn last_steps<V: Vector, D: Decode<V>, const N: usize>(
        &self,
        rows: &Rows<'_>,
        packed: Packed<'_>,
        sums: &mut [[V; N]; R],
    ) {
        for step in self.steps_in_place::<V, D>(rows)..rows.d_in.div_ceil(D::STEP) {
            // SAFETY: guaranteed by the caller; the ends of the rows are copied and padded first.
            unsafe {
                let mut last = [const { LastStep::ZERO }; R]; // the decoded steps may point into these copies
                for r in 0..R {
                    last[r] = self.starts[r].last_step::<V, D>(rows, step);
                }
                let mut decoded = [last[0].step::<V, D>(rows); R];
                for r in 1..R {
                    decoded[r] = last[r].step::<V, D>(rows);
                }
                multiply::<V, D, R, N>(decoded, packed, step, sums);
            }
        }
    }

    /// Writes the output features before `end`, each exactly once.
    #[inline(always)]
    unsafe fn write<V: Vector, D: Decode<V>, const N: usize>(
        &self,
        rows: &Rows<'_>,
        end: usize,
        product: &Product<'_>,
        sums: &[[V; N]; R],
    ) {
        for r in 0..R {
            let feature = self.features[r];
            if feature >= end {
                continue;
            }
            let (scale, bias) = (rows.row_scale::<V, D>(feature), product.bias_at(feature));
            for n in 0..product.n_rows {
                // SAFETY: guaranteed by the caller.
                unsafe { product.out.write(n * product.d_out + feature, sums[r][n].sum() * scale + bias) };
            }
        }
    }
}

/// Adds the products of one step.
#[inline(always)]
unsafe fn multiply<V: Vector, D: Decode<V>, const R: usize, const N: usize>(
    steps: [D::Step; R],
    packed: Packed<'_>,
    step: usize,
    sums: &mut [[V; N]; R],
) {
    debug_assert!(
        (N - 1) * packed.stride + (step + 1) * D::STEP <= packed.values.len(),
        "step {step} must be inside the activations"
    );
    // With one row of activations, it is cheaper to apply lane scales once to the sums than to each vector.
    let scale_sums = D::SCALED_LANES && N == 1;
    // SAFETY: guaranteed by the caller.
    let mut partial = if scale_sums { [[unsafe { V::splat(0.0) }; N]; R] } else { *sums };
    for index in 0..D::STEP / V::LANES {
        // SAFETY: `groups` has checked that the activations have `N` rows of whole steps.
        unsafe {
            let at = packed.values.as_ptr().add(step * D::STEP + index * V::LANES);
            let mut x = [V::load(at); N];
            for n in 1..N {
                x[n] = V::load(at.add(n * packed.stride));
            }
            for r in 0..R {
                let weights = D::vector(steps[r], index);
                let weights =
                    if D::SCALED_LANES && !scale_sums { weights.mul(D::lane_scales(steps[r])) } else { weights };
                for n in 0..N {
                    partial[r][n] = weights.mul_add(x[n], partial[r][n]);
                }
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            sums[r][n] = match scale_sums {
                // SAFETY: the caller guarantees CPU support and valid steps.
                true => unsafe { partial[r][n].mul_add(D::lane_scales(steps[r]), sums[r][n]) },
                false => partial[r][n],
            };
        }
    }
}
