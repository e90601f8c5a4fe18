//! Decode attention: one query per row attends to the cache. Chunks of keys are processed in parallel and then
//! merged.
//!
//! The query heads of a group are processed together, so keys and values are read once and never repeated. Values
//! of hidden keys are not read at all, so the whole capacity of a cache can be passed, filled or not.

#![allow(unsafe_code)] // kernels run without bounds checks; each launch says why that is safe
#![allow(clippy::too_many_arguments)] // a kernel takes its arguments one by one

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::attend::{LOWEST, dot, mask_arg, with_vector_layout};
use super::empty_on_device_of;

/// Number of keys per chunk, and number of units per cube. A unit first computes the scores of one key, then one column
/// of the output.
const CHUNK: usize = 128;

/// Amount of shared memory that every device has, in bytes.
const SHARED_BYTES: usize = 32 << 10;

/// Returns whether the queries of a group, and their weights for every key of a chunk, fit in shared memory.
pub(super) fn fits(group: usize, head_dim: usize) -> bool {
    (group * (head_dim + CHUNK) + CHUNK) * size_of::<f32>() <= SHARED_BYTES
}

/// Processes one chunk of one key/value head. For each query head of the group it stores the largest score, the
/// sum of the weights, and the weighted sum of the values.
#[cube(launch_unchecked)]
fn chunk<F: Float, B: Int>(
    query: &Tensor<Vector<F, Const<4>>>, // [batch, heads, 1, head_dim]
    key: &Tensor<Vector<F, Const<4>>>,   // [batch, kv_heads, len, head_dim]
    value: &Tensor<F>,
    mask: ComptimeOption<&Tensor<B>>, // [batch, 1, 1, len]
    parts: &mut [f32],                // [batch, heads, chunks, head_dim + 2]
    scale: f32,
    #[comptime] group: usize,
    #[comptime] width: usize, // width of a head, in vectors
    #[define(F, B)] _dtypes: [ElemType; 2],
) {
    let (kv_head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let unit = UNIT_POS as usize;
    let len = key.shape(2);
    let first = CUBE_POS_X as usize * comptime!(CHUNK);
    let key_at = first + unit;
    let key_in = clamp_max(key_at, len - 1);

    let mut queries = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(group * width));
    let mut at = unit;
    while at < comptime!(group * width) {
        let from = batch * query.stride(0) + (kv_head * group + at / width) * query.stride(1);
        queries[at] = Vector::cast_from(query[from / 4 + at % width]);
        at += comptime!(CHUNK);
    }
    sync_cube();

    let mut hidden = key_at >= len;
    #[comptime]
    if let ComptimeOption::Some(mask) = &mask {
        hidden = hidden || mask[batch * mask.stride(0) + key_in * mask.stride(3)] != B::from_int(0);
    }
    let mut scores = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        scores[head] = 0.0;
    }
    let from = (batch * key.stride(0) + kv_head * key.stride(1) + key_in * key.stride(2)) / 4;
    if !hidden {
        for column in 0..width {
            let states = Vector::<f32, Const<4>>::cast_from(key[from + column]);
            #[unroll]
            for head in 0..group {
                scores[head] += dot(queries[head * width + column], states);
            }
        }
    }
    let mut is_hidden = Shared::<[u32]>::new_slice(CHUNK);
    is_hidden[unit] = u32::cast_from(hidden);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(group * CHUNK));
    #[unroll]
    for head in 0..group {
        weights[head * CHUNK + unit] = select(hidden, f32::new(LOWEST), scores[head] * scale);
    }
    sync_cube();

    let mut largest = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        largest[head] = f32::new(LOWEST);
        for index in 0..comptime!(CHUNK) {
            largest[head] = max(largest[head], weights[head * CHUNK + index]);
        }
    }
    sync_cube();
    #[unroll]
    for head in 0..group {
        weights[head * CHUNK + unit] = select(hidden, 0.0f32, (scores[head] * scale - largest[head]).exp());
    }
    sync_cube();

    let head_dim = comptime!(4 * width);
    let chunks = CUBE_COUNT_X as usize;
    let n_keys = clamp_max(len - first, CHUNK);
    let from = batch * value.stride(0) + kv_head * value.stride(1) + first * value.stride(2);
    if unit < head_dim {
        let mut context = Array::<f32>::new(group);
        let mut totals = Array::<f32>::new(group);
        #[unroll]
        for head in 0..group {
            context[head] = 0.0;
            totals[head] = 0.0;
        }
        for index in 0..n_keys {
            if is_hidden[index] == 0 {
                let states = f32::cast_from(value[from + index * value.stride(2) + unit]);
                #[unroll]
                for head in 0..group {
                    let weight = weights[head * CHUNK + index];
                    context[head] += weight * states;
                    totals[head] += weight;
                }
            }
        }
        #[unroll]
        for head in 0..group {
            let query_head = batch * query.shape(1) + kv_head * group + head;
            let to = (query_head * chunks + CUBE_POS_X as usize) * comptime!(4 * width + 2);
            parts[to + unit] = context[head];
            if unit == 0 {
                parts[to + head_dim] = largest[head];
                parts[to + head_dim + 1] = totals[head];
            }
        }
    }
}

/// Merges the chunks of a head, with one unit per output value.
#[cube(launch_unchecked)]
fn merge<F: Float>(
    parts: &[f32],    // [batch, heads, chunks, head_dim + 2]
    output: &mut [F], // [batch, heads, 1, head_dim]
    chunks: usize,
    n_values: usize,
    #[comptime] head_dim: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < n_values {
        let first = ABSOLUTE_POS / head_dim * chunks * comptime!(head_dim + 2);
        let column = ABSOLUTE_POS % head_dim;
        let mut largest = f32::new(LOWEST);
        for chunk in 0..chunks {
            largest = max(largest, parts[first + chunk * comptime!(head_dim + 2) + head_dim]);
        }
        let mut context = 0.0f32;
        let mut total = 0.0f32;
        for chunk in 0..chunks {
            let at = first + chunk * comptime!(head_dim + 2);
            let share = (parts[at + head_dim] - largest).exp();
            context += share * parts[at + column];
            total += share * parts[at + head_dim + 1];
        }
        // A query without visible keys gives 0.
        output[ABSOLUTE_POS] = F::cast_from(select(total == 0.0, 0.0f32, context / total));
    }
}

pub(super) fn launch(query: CubeTensor, key: CubeTensor, value: CubeTensor, mask: Option<CubeTensor>) -> CubeTensor {
    let [query, key, value] = [query, key, value].map(with_vector_layout);
    let [batch, heads, _, head_dim] = query.meta.shape().dims::<4>();
    let [_, kv_heads, len, _] = key.meta.shape().dims::<4>();
    let chunks = len.div_ceil(CHUNK);
    let output = empty_on_device_of(&query, [batch, heads, 1, head_dim], query.dtype);
    let parts = empty_on_device_of(&query, [batch, heads, chunks, head_dim + 2], DType::F32);
    let (mask, mask_dtype) = mask_arg(mask);
    let dtype = dtype_to_storage_type(query.dtype);
    let n_values = batch * heads * head_dim;
    let client = output.client.clone();
    // SAFETY: key indices past the last key are clamped to the last key, and get no weight. Values past the last one
    // are not read. Units past `n_values` do nothing.
    unsafe {
        chunk::launch_unchecked(
            &client,
            CubeCount::Static(chunks as u32, kv_heads as u32, batch as u32),
            CubeDim::new_1d(CHUNK as u32),
            query.into_tensor_arg(),
            key.into_tensor_arg(),
            value.into_tensor_arg(),
            mask.into(),
            parts.clone().into_buffer_arg(),
            1.0 / (head_dim as f32).sqrt(),
            heads / kv_heads,
            head_dim / 4,
            [dtype, mask_dtype],
        );
        merge::launch_unchecked(
            &client,
            CubeCount::Static(n_values.div_ceil(CHUNK) as u32, 1, 1),
            CubeDim::new_1d(CHUNK as u32),
            parts.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            chunks,
            n_values,
            head_dim,
            dtype,
        );
    }
    output
}
