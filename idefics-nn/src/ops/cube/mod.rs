//! Kernels for GPUs, written once for CUDA, SPIR-V and WGSL: what Burn has no operation for, or one that makes what
//! need not be made. Codes stay packed, and attention scores are never stored.
//!
//! Sums are in f32, whatever the activations are in. The kernels have nothing of one vendor in them: units of a cube
//! add up through shared memory, of which 32 KiB are enough.

mod attend;
mod attend_accelerated;
mod attend_once;
#[cfg(feature = "autodiff")]
mod frozen;
mod packed_panel;
mod packed_rows;
mod write;

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{Bool, DType, Device, Int, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

pub(crate) use super::PackedShape;
use attend_accelerated::Tiles;

/// Rows up to which a packed weight is multiplied where it lies; with more of them its numbers are made first, a panel
/// at a time, and multiplied by what the device has for matrices.
const FEW_ROWS: usize = 16;

/// Numbers of a panel, at most, unless one row has more: 64 MB in 16 bits.
const PANEL: usize = 1 << 25;

/// Some rows of a packed weight, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Panel {
    pub(crate) weight: PackedShape,
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) dtype: DType,
}

/// What has a kernel. Codes are four bytes a word, in the order of their format; scales are in F32.
#[backend_extension(Cube, Fusion)]
pub(crate) trait CubeKernels: Backend {
    /// `x Wᵀ` of a few rows: `[n_rows, d_in]` in, `[n_rows, d_out]` out.
    #[fusion(dtype = rows, shape = product_shape(rows, weight))]
    fn packed_rows(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        weight: PackedShape,
    ) -> FloatTensor<Self>;

    /// Rows of the weight in numbers, `[count, d_in]`.
    #[fusion(dtype = panel.dtype, shape = panel_shape(panel))]
    fn packed_panel(codes: IntTensor<Self>, scales: FloatTensor<Self>, panel: Panel) -> FloatTensor<Self>;

    /// Attention of one query a row: `[batch, heads, 1, head_dim]` to keys and values of
    /// `[batch, kv_heads, len, head_dim]`, views of a larger cache.
    #[fusion(dtype = query, shape = query)]
    fn attend_once(query: FloatTensor<Self>, key: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same; `masked_out`, `[batch, 1, 1, len]`, hides keys.
    #[fusion(dtype = query, shape = query)]
    fn attend_once_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        masked_out: BoolTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Attention of many queries: `[batch, heads, queries, head_dim]` to keys and values of
    /// `[batch, kv_heads, len, head_dim]`.
    #[fusion(dtype = query, shape = query)]
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        tiles: Tiles,
    ) -> FloatTensor<Self>;

    /// The same; `masked_out`, `[batch, 1, queries, len]`, hides keys.
    #[fusion(dtype = query, shape = query)]
    fn attend_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        masked_out: BoolTensor<Self>,
        tiles: Tiles,
    ) -> FloatTensor<Self>;

    /// Writes one row of each head, `[batch, heads, 1, head_dim]`, to the slot in `slot`, `[1]` of I32, of `states`,
    /// `[batch, heads, capacity, head_dim]`: where they lie, whoever else holds them.
    #[fusion(dtype = states, shape = states)]
    fn write_slot(states: FloatTensor<Self>, new: FloatTensor<Self>, slot: IntTensor<Self>) -> FloatTensor<Self>;

    /// Writes new numbers of I32 over as many others, where those lie, whoever else holds them.
    #[fusion(dtype = target, shape = target)]
    fn overwrite(target: IntTensor<Self>, new: IntTensor<Self>) -> IntTensor<Self>;
}

fn product_shape(rows: &Shape, weight: &PackedShape) -> Shape {
    Shape::from([rows[0], weight.d_out])
}

fn panel_shape(panel: &Panel) -> Shape {
    Shape::from([panel.count, panel.weight.d_in])
}

impl CubeKernels for CubeBackend {
    fn packed_rows(rows: CubeTensor, codes: CubeTensor, scales: CubeTensor, weight: PackedShape) -> CubeTensor {
        packed_rows::launch(rows, codes, scales, weight)
    }

    fn packed_panel(codes: CubeTensor, scales: CubeTensor, panel: Panel) -> CubeTensor {
        packed_panel::launch(codes, scales, panel)
    }

    fn attend_once(query: CubeTensor, key: CubeTensor, value: CubeTensor) -> CubeTensor {
        attend_once::launch(query, key, value, None)
    }

    fn attend_once_masked(query: CubeTensor, key: CubeTensor, value: CubeTensor, masked_out: CubeTensor) -> CubeTensor {
        attend_once::launch(query, key, value, Some(masked_out))
    }

    fn attend(query: CubeTensor, key: CubeTensor, value: CubeTensor, tiles: Tiles) -> CubeTensor {
        attend_accelerated::launch(query, key, value, None, tiles)
    }

    fn attend_masked(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        masked_out: CubeTensor,
        tiles: Tiles,
    ) -> CubeTensor {
        attend_accelerated::launch(query, key, value, Some(masked_out), tiles)
    }

    fn write_slot(states: CubeTensor, new: CubeTensor, slot: CubeTensor) -> CubeTensor {
        write::slot(states, new, slot)
    }

    fn overwrite(target: CubeTensor, new: CubeTensor) -> CubeTensor {
        write::overwrite(target, new)
    }
}

/// Whether tensors of the device are a GPU's, outside any autodiff graph.
pub(crate) fn computes_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// The product of activations with a packed weight, `[n_rows, d_in]` in, `[n_rows, d_out]` out.
pub(crate) fn packed_product(
    rows: Tensor<2>,
    codes: Tensor<1, Int>,
    scales: Tensor<1>,
    weight: PackedShape,
) -> Tensor<2> {
    let dtype = rows.dtype();
    if rows.dims()[0] <= FEW_ROWS && packed_rows::fits(weight) {
        let (rows, codes, scales) = (rows.into_dispatch(), codes.into_dispatch(), scales.into_dispatch());
        return Tensor::from_dispatch(Dispatch::packed_rows(rows, codes, scales, weight));
    }
    let at_once = (PANEL / weight.d_in).max(1);
    let products = (0..weight.d_out).step_by(at_once).map(|first| {
        let count = at_once.min(weight.d_out - first);
        let panel = panel(codes.clone(), scales.clone(), Panel { weight, first, count, dtype });
        rows.clone().matmul(panel.transpose()) // [n_rows, count]
    });
    let mut products: Vec<Tensor<2>> = products.collect();
    if products.len() == 1 { products.swap_remove(0) } else { Tensor::cat(products, 1) }
}

/// See [`CubeKernels::packed_panel`].
pub(crate) fn panel(codes: Tensor<1, Int>, scales: Tensor<1>, panel: Panel) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_panel(codes.into_dispatch(), scales.into_dispatch(), panel))
}

/// Attention by whichever kernel the number of queries asks for; `None` where heads are too wide or no vectors, or where
/// there is nothing to attend.
pub(crate) fn attend([query, key, value]: [Tensor<4>; 3], masked_out: Option<Tensor<4, Bool>>) -> Option<Tensor<4>> {
    let [_, heads, queries, head_dim] = query.dims();
    let group = heads / key.dims()[1].max(1);
    let is_empty = query.dims().contains(&0) || key.dims().contains(&0);
    if is_empty || !attend::fits(head_dim) || (queries == 1 && !attend_once::fits(group, head_dim)) {
        return None;
    }
    let [query, key, value] = [query, key, value].map(Tensor::into_dispatch);
    let masked_out = masked_out.map(Tensor::into_dispatch);
    Some(Tensor::from_dispatch(match masked_out {
        None if queries == 1 => Dispatch::attend_once(query, key, value),
        Some(masked_out) if queries == 1 => Dispatch::attend_once_masked(query, key, value, masked_out),
        None => Dispatch::attend(query, key, value, Tiles::Best),
        Some(masked_out) => Dispatch::attend_masked(query, key, value, masked_out, Tiles::Best),
    }))
}

/// See [`CubeKernels::write_slot`].
pub(crate) fn write_slot(states: Tensor<4>, new: Tensor<4>, slot: Tensor<1, Int>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::write_slot(states.into_dispatch(), new.into_dispatch(), slot.into_dispatch()))
}

/// See [`CubeKernels::overwrite`].
pub(crate) fn overwrite(target: Tensor<1, Int>, new: Tensor<1, Int>) -> Tensor<1, Int> {
    Tensor::from_dispatch(Dispatch::overwrite(target.into_dispatch(), new.into_dispatch()))
}

/// Memory of a shape, of the dtype and on the device of a tensor.
fn empty_beside(tensor: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), shape.into(), dtype)
}
