//! GPU kernels for operations that Burn does not have, or that it computes with large intermediate results. In these
//! kernels, packed weights stay packed, and attention scores are never stored. Each kernel is written once for CUDA,
//! SPIR-V and WGSL.
//!
//! Sums are f32, whatever the dtype of the activations. No kernel needs features of a particular vendor. The units
//! (threads) of a cube (thread block) add up partial results in shared memory, and need at most 32 KiB of it.

mod attend;
mod attend_accelerated;
mod decode_attention;
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

/// Maximum number of activation rows for which a packed weight is decoded inside the product. With more rows, the
/// weight is dequantised one panel (range of rows) at a time, and multiplied by the GEMM of the device.
const FEW_ROWS: usize = 16;

/// Maximum number of values in a panel: 64 MiB in 16 bits. A panel of a single row may have more.
const PANEL: usize = 1 << 25;

/// A range of rows of a packed weight, to dequantise to `dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Panel {
    pub(crate) weight: PackedShape,
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) dtype: DType,
}

/// Operations with a GPU kernel. Codes are packed into words of four bytes, in the order of their format; scales are
/// F32.
#[backend_extension(Cube, Fusion)]
pub(crate) trait CubeKernels: Backend {
    /// Computes `x Wᵀ` for a few rows: takes `[n_rows, d_in]` and returns `[n_rows, d_out]`.
    #[fusion(dtype = rows, shape = product_shape(rows, weight))]
    fn packed_rows(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        weight: PackedShape,
    ) -> FloatTensor<Self>;

    /// Dequantises rows of the weight to `[count, d_in]`.
    #[fusion(dtype = panel.dtype, shape = panel_shape(panel))]
    fn packed_panel(codes: IntTensor<Self>, scales: FloatTensor<Self>, panel: Panel) -> FloatTensor<Self>;

    /// Computes attention of one query per row, `[batch, heads, 1, head_dim]`, to keys and values
    /// `[batch, kv_heads, len, head_dim]`, which may be views of a larger cache.
    #[fusion(dtype = query, shape = query)]
    fn decode_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Computes attention like [`Self::decode_attention`], with a `mask`, `[batch, 1, 1, len]`, that hides keys.
    #[fusion(dtype = query, shape = query)]
    fn decode_attention_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Computes attention of many queries, `[batch, heads, queries, head_dim]`, to keys and values
    /// `[batch, kv_heads, len, head_dim]`.
    #[fusion(dtype = query, shape = query)]
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        tiles: Tiles,
    ) -> FloatTensor<Self>;

    /// Computes attention like [`Self::attend`], with a `mask`, `[batch, 1, queries, len]`, that hides keys.
    #[fusion(dtype = query, shape = query)]
    fn attend_masked(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        tiles: Tiles,
    ) -> FloatTensor<Self>;

    /// Writes the keys or values of one token per row, `new`, `[batch, heads, 1, head_dim]`, into `states`,
    /// `[batch, heads, capacity, head_dim]`. `slot` is the number of the slot, `[1]` in I32. Writes in place even if
    /// other tensors share the memory.
    #[fusion(dtype = states, shape = states)]
    fn write_slot(states: FloatTensor<Self>, new: FloatTensor<Self>, slot: IntTensor<Self>) -> FloatTensor<Self>;

    /// Overwrites the I32 values of `target` with those of `new`, in place even if other tensors share the memory.
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

    fn decode_attention(query: CubeTensor, key: CubeTensor, value: CubeTensor) -> CubeTensor {
        decode_attention::launch(query, key, value, None)
    }

    fn decode_attention_masked(query: CubeTensor, key: CubeTensor, value: CubeTensor, mask: CubeTensor) -> CubeTensor {
        decode_attention::launch(query, key, value, Some(mask))
    }

    fn attend(query: CubeTensor, key: CubeTensor, value: CubeTensor, tiles: Tiles) -> CubeTensor {
        attend_accelerated::launch(query, key, value, None, tiles)
    }

    fn attend_masked(
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
        mask: CubeTensor,
        tiles: Tiles,
    ) -> CubeTensor {
        attend_accelerated::launch(query, key, value, Some(mask), tiles)
    }

    fn write_slot(states: CubeTensor, new: CubeTensor, slot: CubeTensor) -> CubeTensor {
        write::slot(states, new, slot)
    }

    fn overwrite(target: CubeTensor, new: CubeTensor) -> CubeTensor {
        write::overwrite(target, new)
    }
}

/// Returns whether tensors of the device are on a GPU and outside any autodiff graph.
pub(crate) fn computes_on(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
}

/// Computes the product of activations with a packed weight: takes `[n_rows, d_in]` and returns `[n_rows, d_out]`.
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

/// Dequantises rows of a packed weight; see [`CubeKernels::packed_panel`].
pub(crate) fn panel(codes: Tensor<1, Int>, scales: Tensor<1>, panel: Panel) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_panel(codes.into_dispatch(), scales.into_dispatch(), panel))
}

/// Computes attention with the kernel for this number of queries. Returns `None` if no kernel supports the head width
/// and the number of query heads per group, or if an input is empty.
pub(crate) fn attend([query, key, value]: [Tensor<4>; 3], mask: Option<Tensor<4, Bool>>) -> Option<Tensor<4>> {
    let [_, heads, queries, head_dim] = query.dims();
    let group = heads / key.dims()[1].max(1);
    let is_empty = query.dims().contains(&0) || key.dims().contains(&0);
    if is_empty || !attend::fits(head_dim) || (queries == 1 && !decode_attention::fits(group, head_dim)) {
        return None;
    }
    let [query, key, value] = [query, key, value].map(Tensor::into_dispatch);
    let mask = mask.map(Tensor::into_dispatch);
    Some(Tensor::from_dispatch(match mask {
        None if queries == 1 => Dispatch::decode_attention(query, key, value),
        Some(mask) if queries == 1 => Dispatch::decode_attention_masked(query, key, value, mask),
        None => Dispatch::attend(query, key, value, Tiles::Best),
        Some(mask) => Dispatch::attend_masked(query, key, value, mask, Tiles::Best),
    }))
}

/// Writes one token per row into a slot; see [`CubeKernels::write_slot`].
pub(crate) fn write_slot(states: Tensor<4>, new: Tensor<4>, slot: Tensor<1, Int>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::write_slot(states.into_dispatch(), new.into_dispatch(), slot.into_dispatch()))
}

/// Overwrites the values of `target`; see [`CubeKernels::overwrite`].
pub(crate) fn overwrite(target: Tensor<1, Int>, new: Tensor<1, Int>) -> Tensor<1, Int> {
    Tensor::from_dispatch(Dispatch::overwrite(target.into_dispatch(), new.into_dispatch()))
}

/// Allocates uninitialised memory of the given shape and dtype, on the device of `tensor`.
fn empty_on_device_of(tensor: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), shape.into(), dtype)
}
