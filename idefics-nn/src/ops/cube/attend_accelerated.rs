//! Attention of many queries on tensor cores, with Burn's flash attention. Queries, keys and values are first copied to
//! the layout that flash attention needs: padded, and with key/value heads repeated for each query head of the group.
//!
//! Tiles are f16 with f32 sums. So only 16-bit activations use this path, and values beyond the range of f16 (65504)
//! become infinite. Burn divides scores by the square root of the padded head width, so the queries are scaled to
//! correct for the padding.

#![allow(unsafe_code)] // kernels run without bounds checks; each launch says why that is safe
#![allow(clippy::too_many_arguments)] // a kernel takes its arguments one by one

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn::tensor::ops::AttentionModuleOptions;
use burn_cubecl::kernel::attention::flash_attention;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubek::attention::forward::definition::AttentionSetupError;
use cubek::attention::forward::launch::{BlueprintStrategy, Strategy};
use cubek::attention::forward::routines::blackbox_accelerated::BlackboxAcceleratedStrategy;

use super::{attend, empty_on_device_of};

/// Number of rows of a tile, which is also its number of columns.
const TILE: usize = 16;

/// Number of query tiles per cube. Each plane (warp) processes one of them.
const PLANES: usize = 4;

/// Minimum number of queries for which tensor cores are faster. The number of queries is padded to a multiple of this
/// minimum.
const QUERIES: usize = PLANES * TILE;

/// Number of units per cube of the copy kernel.
const UNITS: u32 = 256;

/// The kernel that attention of many queries uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tiles {
    /// Tensor cores where they are faster, otherwise the tiles of [`attend`].
    Best,
    /// Burn's flash attention without tensor cores but with the same layout. It can be tested on any GPU.
    #[cfg(test)]
    Plain,
}

/// Returns whether the device has tensor cores and they are faster for these inputs: there are enough queries,
/// activations have 16 bits, and the numbers of queries and keys are similar.
fn pays(query: &CubeTensor, key: &CubeTensor) -> bool {
    let [f16, f32] = [FloatKind::F16, FloatKind::F32].map(ElemType::Float);
    let tile = MmaConfig { a_type: f16, b_type: f16, cd_type: f32, m: 16, n: 16, k: 16 };
    let has_cores = || query.client.properties().features.matmul.cmma.contains(&tile);
    let (queries, len) = (query.meta.shape()[2].next_multiple_of(QUERIES), key.meta.shape()[2]);
    // If the numbers of queries and keys are not similar, Burn picks tiles of another shape, for which this layout is
    // wrong.
    let is_square = queries < 4 * len && len < 4 * queries;
    matches!(query.dtype, DType::F16 | DType::BF16) && query.meta.shape()[2] >= QUERIES && is_square && has_cores()
}

/// Copies with padding, with one unit per output value. Rows and columns past the end of `states` become zero, and each
/// head is repeated `group` times.
#[cube(launch_unchecked)]
fn copy_padded<N: Numeric>(
    states: &Tensor<N>, // [batch, heads / group, len, head_dim]
    output: &mut [N],   // [batch, heads, rows, width]
    scale: f32,
    heads: usize,
    rows: usize,
    width: usize,
    group: usize,
    n_values: usize,
    #[define(N)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < n_values {
        let (row, column) = (ABSOLUTE_POS / width % rows, ABSOLUTE_POS % width);
        let head = ABSOLUTE_POS / width / rows;
        let mut value = N::from_int(0);
        if row < states.shape(2) && column < states.shape(3) {
            let from = head / heads * states.stride(0) + head % heads / group * states.stride(1);
            let number = f32::cast_from(states[from + row * states.stride(2) + column * states.stride(3)]);
            value = N::cast_from(number * scale);
        }
        output[ABSOLUTE_POS] = value;
    }
}

/// Copies states, or a mask, to the padded layout `[batch, heads, rows, width]`, and multiplies them by `scale`.
fn copy_to_layout(states: &CubeTensor, scale: f32, [heads, rows, width]: [usize; 3]) -> CubeTensor {
    let [batch, own_heads, _, _] = states.meta.shape().dims::<4>();
    let output = empty_on_device_of(states, [batch, heads, rows, width], states.dtype);
    let n_values = batch * heads * rows * width;
    let dim = CubeDim::new_1d(UNITS);
    let dtype = dtype_to_storage_type(states.dtype);
    // SAFETY: units past the last value do nothing, and nothing past the end of the states is read.
    unsafe {
        copy_padded::launch_unchecked(
            &output.client,
            calculate_cube_count_elemwise(&output.client, n_values, dim),
            dim,
            states.clone().into_tensor_arg(),
            output.clone().into_buffer_arg(),
            scale,
            heads,
            rows,
            width,
            heads / own_heads,
            n_values,
            dtype,
        );
    }
    output
}

/// Computes attention of many queries with the chosen kernel; see [`super::CubeKernels::attend`].
pub(super) fn launch(
    query: CubeTensor,
    key: CubeTensor,
    value: CubeTensor,
    mask: Option<CubeTensor>,
    tiles: Tiles,
) -> CubeTensor {
    let accelerated = Strategy::BlackboxAccelerated(BlueprintStrategy::Inferred(BlackboxAcceleratedStrategy {
        num_planes: PLANES as u8,
        seq_q: 1,
        seq_kv: 1,
    }));
    let states = [&query, &key, &value];
    let accelerated = match tiles {
        Tiles::Best if pays(&query, &key) => flash(states, mask.as_ref(), accelerated).ok(),
        Tiles::Best => None,
        #[cfg(test)]
        Tiles::Plain => {
            let plain = Strategy::Unit(BlueprintStrategy::Inferred(()));
            Some(flash(states, mask.as_ref(), plain).expect("Burn accepts this layout"))
        }
    };
    accelerated.unwrap_or_else(|| attend::launch(query, key, value, mask))
}

/// Pads the inputs, calls Burn's flash attention and removes the padding.
fn flash(
    [query, key, value]: [&CubeTensor; 3],
    mask: Option<&CubeTensor>,
    strategy: Strategy,
) -> Result<CubeTensor, AttentionSetupError> {
    let [batch, heads, queries, head_dim] = query.meta.shape().dims::<4>();
    let len = key.meta.shape()[2];
    let (rows, width) = (queries.next_multiple_of(QUERIES), head_dim.next_multiple_of(TILE));
    let scale = (width as f32 / head_dim as f32).sqrt();
    let query = copy_to_layout(query, scale, [heads, rows, width]);
    let [key, value] = [key, value].map(|states| copy_to_layout(states, 1.0, [heads, len, width]));
    let mask = mask.map(|mask| copy_to_layout(mask, 1.0, [1, rows, len]));
    let options = AttentionModuleOptions::default();
    let context = flash_attention(query, key, value, mask, None, options, strategy)?; // [batch, heads, rows, width]
    Ok(burn_cubecl::kernel::slice(context, &[0..batch, 0..heads, 0..queries, 0..head_dim]))
}

#[cfg(test)]
mod tests {
    use burn::backend::Dispatch;
    use burn::tensor::{Bool, Device, Distribution, Tensor, TensorData};

    use super::*;
    use crate::ops::cube::CubeKernels;
    use crate::{Activations, attention};

    /// Returns the first GPU of the enabled backends.
    fn gpu() -> Device {
        #[cfg(feature = "cuda")]
        return Device::cuda(0);
        #[cfg(all(feature = "vulkan", not(feature = "cuda")))]
        return Device::vulkan(burn::tensor::DeviceKind::DefaultDevice);
        #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
        return Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads the result back to the host")]
    fn tensor_core_layout_matches_cpu() {
        // Covers head widths and query counts that are not multiples of the tile size, grouped heads, and strided keys.
        for (batch, kv_heads, group, queries, len, head_dim) in [(1, 2, 1, 70, 70, 72), (2, 2, 3, 65, 90, 80)] {
            for is_masked in [false, true] {
                let [query, key, value] = [(queries, group), (len + 3, 1), (len + 3, 1)].map(|(n, group)| {
                    let states = Tensor::<4>::random(
                        [batch, n, kv_heads * group, head_dim],
                        Distribution::Default,
                        &Device::flex(),
                    );
                    states.swap_dims(1, 2)
                });
                let mask = is_masked.then(|| {
                    // The first query sees no key, like a query in padding.
                    let hidden = |at: usize| {
                        let (query, key) = (at / len % queries, at % len);
                        query == 0 || key > query + len - queries
                    };
                    let hidden: Vec<bool> = (0..batch * queries * len).map(hidden).collect();
                    TensorData::new(hidden, [batch, 1, queries, len])
                });
                let on = |device: &Device, states: &Tensor<4>| {
                    states.clone().to_device(device).narrow(2, 0, states.dims()[2].min(len))
                };
                let mask = |device: &Device| mask.clone().map(|mask| Tensor::<4, Bool>::from_data(mask, device));
                let cpu = Device::flex();
                let expected =
                    attention(on(&cpu, &query), on(&cpu, &key), on(&cpu, &value), mask(&cpu), Activations::F32);
                let [query, key, value] = [&query, &key, &value].map(|states| on(&gpu(), states).into_dispatch());
                let context = Tensor::<4>::from_dispatch(match mask(&gpu()) {
                    None => Dispatch::attend(query, key, value, Tiles::Plain),
                    Some(mask) => Dispatch::attend_masked(query, key, value, mask.into_dispatch(), Tiles::Plain),
                });
                let difference = (context.to_device(&cpu) - expected).abs().max().into_scalar::<f32>();
                assert!(
                    difference < 1e-5,
                    "{queries} queries, head_dim {head_dim}, masked {is_masked}: difference {difference}"
                );
            }
        }
    }
}
