//! The product with a frozen (untrained) weight, as a single operation of the autodiff graph. The graph keeps the
//! weight in its own format for the backward pass. Both passes dequantise the weight block by block.
//!
//! Burn's own operations would keep the weights of all layers in the dtype of the activations until the backward
//! pass has finished.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
#[cfg(feature = "cube")]
use burn::tensor::Shape;
use burn::tensor::{DType, Device, Int, Tensor};

use super::{PackedShape, is_cpu};

/// Products with a frozen weight, and products with the transposed weight. Dense weights may be F32, BF16 or F16;
/// scales have the dtype of their format.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
    Autodiff
)]
pub(crate) trait FrozenLinear: Backend {
    /// Computes `x Wᵀ`: takes `[n_rows, d_in]` and `[d_out, d_in]`, and returns `[n_rows, d_out]`.
    #[fusion(dtype = rows, shape = Shape::from([rows[0], weight[0]]))]
    fn frozen_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes `y W`: takes `[n_rows, d_out]` and `[d_out, d_in]`, and returns `[n_rows, d_in]`.
    #[fusion(dtype = rows, shape = Shape::from([rows[0], weight[1]]))]
    fn frozen_product_transposed(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Computes `x Wᵀ` like [`Self::frozen_product`], with a packed weight.
    #[fusion(dtype = rows, shape = Shape::from([rows[0], shape.d_out]))]
    fn frozen_packed_product(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self>;

    /// Computes `y W` like [`Self::frozen_product_transposed`], with a packed weight.
    #[fusion(dtype = rows, shape = Shape::from([rows[0], shape.d_in]))]
    fn frozen_packed_product_transposed(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self>;
}

/// Returns whether these operations apply: the activations belong to an autodiff graph, on a CPU or GPU device with
/// kernels.
pub(super) fn applies_to(rows: &Tensor<2>) -> bool {
    rows.is_autodiff() && (is_cpu(&rows.device()) || is_gpu(&rows.device()))
}

fn is_gpu(device: &Device) -> bool {
    super::shares_memory(&device.clone().without_autodiff())
}

/// Computes `x Wᵀ`: takes `[n_rows, d_in]` and `[d_out, d_in]`, and returns `[n_rows, d_out]` in the dtype of the
/// activations.
pub(super) fn dense_product(rows: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    in_kernel_dtype(rows, |rows| {
        Tensor::from_dispatch(Dispatch::frozen_product(rows.into_dispatch(), weight.into_dispatch()))
    })
}

/// Computes `x Wᵀ` like [`dense_product`], with a packed weight.
pub(super) fn packed_product(
    rows: Tensor<2>,
    codes: Tensor<1, Int>,
    scales: Tensor<1>,
    shape: PackedShape,
) -> Tensor<2> {
    in_kernel_dtype(rows, |rows| {
        let (rows, codes, scales) = (rows.into_dispatch(), codes.into_dispatch(), scales.into_dispatch());
        Tensor::from_dispatch(Dispatch::frozen_packed_product(rows, codes, scales, shape))
    })
}

/// Calls `product` with activations in a dtype that the kernels take: on the CPU, this is always f32. The result is
/// cast back.
fn in_kernel_dtype(rows: Tensor<2>, product: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    let dtype = rows.dtype();
    if dtype == DType::F32 || !is_cpu(&rows.device()) {
        return product(rows);
    }
    product(rows.cast(DType::F32)).cast(dtype)
}

/// The state that the backward pass needs. It is only the weight, because the product is linear.
#[derive(Debug, Clone)]
enum Frozen<B: Backend> {
    Dense(FloatTensor<B>),
    Packed { codes: IntTensor<B>, scales: FloatTensor<B>, shape: PackedShape },
}

impl<B: FrozenLinear> Frozen<B> {
    /// Computes `x Wᵀ`, or `x W` if `transposed`.
    fn product(self, rows: FloatTensor<B>, transposed: bool) -> FloatTensor<B> {
        match (self, transposed) {
            (Self::Dense(weight), false) => B::frozen_product(rows, weight),
            (Self::Dense(weight), true) => B::frozen_product_transposed(rows, weight),
            (Self::Packed { codes, scales, shape }, false) => B::frozen_packed_product(rows, codes, scales, shape),
            (Self::Packed { codes, scales, shape }, true) => {
                B::frozen_packed_product_transposed(rows, codes, scales, shape)
            }
        }
    }
}

/// The backward step of a product. `TRANSPOSED` is true if the forward product was `x W`, and false if it was `x Wᵀ`.
#[derive(Debug)]
struct Through<const TRANSPOSED: bool>;

impl<B: FrozenLinear, const TRANSPOSED: bool> Backward<B, 1> for Through<TRANSPOSED> {
    type State = Frozen<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let Ops { parents, node, state } = ops;
        unary::<B, _>(parents, node, grads, |gradient| state.product(gradient, !TRANSPOSED));
    }
}

/// Computes a product, and records it in the graph if the activations require gradients.
fn record<B: FrozenLinear, C: CheckpointStrategy, const TRANSPOSED: bool>(
    rows: FloatTensor<Autodiff<B, C>>,
    weight: Frozen<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let (rows, node) = rows.into_parts();
    match Backward::<B, 1>::prepare::<C>(Through::<TRANSPOSED>, [node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(weight.clone(), weight.product(rows, TRANSPOSED)),
        OpsKind::UnTracked(prep) => prep.finish(weight.product(rows, TRANSPOSED)),
    }
}

impl<B: FrozenLinear, C: CheckpointStrategy> FrozenLinear for Autodiff<B, C> {
    fn frozen_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, false>(rows, Frozen::Dense(weight.into_primitive()))
    }

    fn frozen_product_transposed(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, true>(rows, Frozen::Dense(weight.into_primitive()))
    }

    fn frozen_packed_product(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self> {
        record::<B, C, false>(rows, Frozen::Packed { codes, scales: scales.into_primitive(), shape })
    }

    fn frozen_packed_product_transposed(
        rows: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        shape: PackedShape,
    ) -> FloatTensor<Self> {
        record::<B, C, true>(rows, Frozen::Packed { codes, scales: scales.into_primitive(), shape })
    }
}
