//! Attention of many queries in tiles; the scores are never stored. Each tile of keys rescales the sums of the tiles
//! before it (online softmax, <https://arxiv.org/abs/1805.02867>; tiling, <https://arxiv.org/abs/2205.14135>).
//!
//! A cube (thread block) processes [`QUERIES`] queries of one head, with [`KEYS`] keys and values of the group's
//! key/value head at a time. Four units (threads) share a query: each computes a quarter of the tile's scores and
//! a quarter of the output columns.

#![allow(unsafe_code)] // kernels run without bounds checks; each launch says why that is safe
#![allow(clippy::too_many_arguments)] // a kernel takes its arguments one by one

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::into_contiguous_aligned;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, UIntKind};
use cubecl::prelude::*;

use super::empty_on_device_of;

/// Number of queries per tile.
const QUERIES: usize = 32;

/// Number of keys per tile.
const KEYS: usize = 16;

/// Number of units that share a query.
const LANES: usize = 4;

/// Largest head width, in values, whose tiles fit in 32 KiB of shared memory.
const WIDEST: usize = 128;

/// The score of a hidden key. It replaces −∞, which WGSL cannot express.
pub(super) const LOWEST: f32 = -3.0e38;

/// Returns whether the kernel supports this head width: a multiple of the vector width, and not too wide.
pub(super) fn fits(head_dim: usize) -> bool {
    head_dim.is_multiple_of(4) && (4..=WIDEST).contains(&head_dim)
}

/// Computes the dot product of two vectors.
#[cube]
pub(super) fn dot(left: Vector<f32, Const<4>>, right: Vector<f32, Const<4>>) -> f32 {
    let products = left * right;
    (products.extract(0usize) + products.extract(1usize)) + (products.extract(2usize) + products.extract(3usize))
}

/// Copies `rows` rows of a head, starting at row `first`, to shared memory. Rows beyond the last row of the head repeat
/// that last row.
#[cube]
fn load<F: Float>(
    tile: &mut Shared<[Vector<f32, Const<4>>]>,
    states: &Tensor<Vector<F, Const<4>>>,
    head: usize,
    first: usize,
    #[comptime] rows: usize,
    #[comptime] width: usize, // width of a row, in vectors
) {
    let last = states.shape(2) - 1;
    let start = CUBE_POS_Z as usize * states.stride(0) + head * states.stride(1);
    let mut at = UNIT_POS as usize;
    while at < comptime!(rows * width) {
        let (row, column) = (at / width, at % width);
        let from = start + clamp_max(first + row, last) * states.stride(2);
        tile[row * comptime!(width + 1) + column] = Vector::cast_from(states[from / 4 + column]);
        at += comptime!(QUERIES * LANES);
    }
}

#[cube(launch_unchecked)]
fn tiles<F: Float, B: Int>(
    query: &Tensor<Vector<F, Const<4>>>, // [batch, heads, queries, head_dim]
    key: &Tensor<Vector<F, Const<4>>>,   // [batch, kv_heads, len, head_dim]
    value: &Tensor<Vector<F, Const<4>>>,
    mask: ComptimeOption<&Tensor<B>>,   // [batch, 1, queries, len]
    output: &mut [Vector<F, Const<4>>], // [batch, heads, queries, head_dim]
    scale: f32,
    group: usize,
    #[comptime] width: usize, // width of a head, in vectors
    #[define(F, B)] _dtypes: [ElemType; 2],
) {
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let first_query = CUBE_POS_X as usize * comptime!(QUERIES);
    let (row, lane) = (UNIT_POS as usize / comptime!(LANES), UNIT_POS as usize % comptime!(LANES));
    let (queries, len) = (query.shape(2), key.shape(2));
    let kv_head = head / group;
    let row_width = comptime!(width + 1); // padded by one vector to avoid bank conflicts
    let own_columns = comptime!(width.div_ceil(LANES));

    let mut query_tile = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(QUERIES * (width + 1)));
    let mut state_tile = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(KEYS * (width + 1)));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(QUERIES * (KEYS + 1)));
    load(&mut query_tile, query, head, first_query, QUERIES, width);

    let mut largest = f32::new(LOWEST);
    let mut total = 0.0f32;
    let mut context = Array::<Vector<f32, Const<4>>>::new(own_columns);
    #[unroll]
    for index in 0..own_columns {
        context[index] = Vector::new(0.0f32);
    }
    let row_weights = row * comptime!(KEYS + 1);
    let query_at = clamp_max(first_query + row, queries - 1);
    let n_tiles = len.div_ceil(comptime!(KEYS));
    for tile in 0..n_tiles {
        let first_key = tile * comptime!(KEYS);
        load(&mut state_tile, key, kv_head, first_key, KEYS, width);
        sync_cube();

        let mut scores = Array::<f32>::new(comptime!(KEYS / LANES));
        #[unroll]
        for index in 0..comptime!(KEYS / LANES) {
            let in_tile = lane + comptime!(index * LANES);
            let mut score = 0.0f32;
            #[unroll]
            for column in 0..width {
                score += dot(query_tile[row * row_width + column], state_tile[in_tile * row_width + column]);
            }
            let key_at = first_key + in_tile;
            let mut hidden = key_at >= len;
            #[comptime]
            if let ComptimeOption::Some(mask) = &mask {
                let at =
                    batch * mask.stride(0) + query_at * mask.stride(2) + clamp_max(key_at, len - 1) * mask.stride(3);
                hidden = hidden || mask[at] != B::from_int(0);
            }
            scores[index] = select(hidden, f32::new(LOWEST), score * scale);
            weights[row_weights + in_tile] = scores[index];
        }
        sync_cube();

        load(&mut state_tile, value, kv_head, first_key, KEYS, width);
        let before = largest;
        #[unroll]
        for index in 0..comptime!(KEYS) {
            largest = max(largest, weights[row_weights + index]);
        }
        let correction = (before - largest).exp();
        sync_cube();

        #[unroll]
        for index in 0..comptime!(KEYS / LANES) {
            let score = scores[index];
            let weight = select(score == f32::new(LOWEST), 0.0f32, (score - largest).exp());
            weights[row_weights + lane + comptime!(index * LANES)] = weight;
        }
        sync_cube();

        total *= correction;
        #[unroll]
        for index in 0..own_columns {
            context[index] *= Vector::new(correction);
        }
        #[unroll]
        for index in 0..comptime!(KEYS) {
            let weight = weights[row_weights + index];
            total += weight;
            #[unroll]
            for column in 0..own_columns {
                let column_at = clamp_max(lane + comptime!(column * LANES), width - 1);
                context[column] += state_tile[index * row_width + column_at] * Vector::new(weight);
            }
        }
        sync_cube();
    }

    if first_query + row < queries {
        let to = ((batch * query.shape(1) + head) * queries + first_query + row) * width;
        // A query without visible keys gives 0.
        let share = select(total == 0.0, 0.0f32, 1.0 / total);
        #[unroll]
        for column in 0..own_columns {
            let column_at = lane + comptime!(column * LANES);
            if column_at < width {
                output[to + column_at] = Vector::cast_from(context[column] * Vector::new(share));
            }
        }
    }
}

/// Returns the states in a layout that can be read as vectors along the last axis. Copies them only if necessary.
pub(super) fn with_vector_layout(states: CubeTensor) -> CubeTensor {
    let strides = states.meta.strides();
    let is_whole = strides[3] == 1 && strides[..3].iter().all(|stride| stride.is_multiple_of(4));
    if is_whole { states } else { into_contiguous_aligned(states) }
}

/// Returns the mask argument of a kernel, and its dtype.
pub(super) fn mask_arg(mask: Option<CubeTensor>) -> (Option<TensorArg>, ElemType) {
    match mask {
        None => (None, ElemType::UInt(UIntKind::U32)),
        Some(mask) => {
            let dtype = dtype_to_storage_type(mask.dtype);
            (Some(mask.into_tensor_arg()), dtype)
        }
    }
}

pub(super) fn launch(query: CubeTensor, key: CubeTensor, value: CubeTensor, mask: Option<CubeTensor>) -> CubeTensor {
    let [query, key, value] = [query, key, value].map(with_vector_layout);
    let [batch, heads, queries, head_dim] = query.meta.shape().dims::<4>();
    let group = heads / key.meta.shape()[1];
    let output = empty_on_device_of(&query, [batch, heads, queries, head_dim], query.dtype);
    let cubes = CubeCount::Static(queries.div_ceil(QUERIES) as u32, heads as u32, batch as u32);
    let dim = CubeDim::new_1d((QUERIES * LANES) as u32);
    let (mask, mask_dtype) = mask_arg(mask);
    let dtype = dtype_to_storage_type(query.dtype);
    // SAFETY: reads past the last row or column are clamped to the last one. Nothing is written past the end of the
    // output.
    unsafe {
        tiles::launch_unchecked(
            &output.client,
            cubes,
            dim,
            query.into_tensor_arg(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            mask.into(),
            output.clone().into_buffer_arg(),
            1.0 / (head_dim as f32).sqrt(),
            group,
            head_dim / 4,
            [dtype, mask_dtype],
        );
    }
    output
}
