//! LoRA: a trainable low-rank update of a linear layer.
//!
//! Paper: <https://arxiv.org/abs/2106.09685>.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops;

/// LoRA: adds `scale · (x Aᵀ) Bᵀ` to the output of a [`crate::Linear`]. The weight of the layer does not change and may
/// have any format.
#[derive(Module, Debug)]
pub struct Adapter {
    /// Matrix A, `[rank, d_in]`.
    pub lora_a: Param<Tensor<2>>,
    /// Matrix B, `[d_out, rank]`.
    pub lora_b: Param<Tensor<2>>,
    /// Scale of the update, α / rank.
    pub scale: f64,
}

impl Adapter {
    /// Creates an adapter from A, `[rank, d_in]`, and B, `[d_out, rank]`.
    ///
    /// # Panics
    /// If the ranks differ.
    pub fn new(lora_a: Tensor<2>, lora_b: Tensor<2>, scale: f64) -> Self {
        assert_eq!(lora_a.dims()[0], lora_b.dims()[1], "A and B must have the same rank");
        Self { lora_a: Param::from_tensor(lora_a), lora_b: Param::from_tensor(lora_b), scale }
    }

    /// Returns `[d_out, d_in]`, the shape of the weights that the adapter fits.
    pub fn dims(&self) -> [usize; 2] {
        [self.lora_b.lazy_shape()[0], self.lora_a.lazy_shape()[1]]
    }

    /// Computes `scale · (x Aᵀ) Bᵀ`: takes `[n_rows, d_in]` and returns `[n_rows, d_out]`.
    pub(crate) fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
        let down = ops::dense_product(rows, self.lora_a.val(), None); // [n_rows, rank]
        ops::dense_product(down, self.lora_b.val(), None) * self.scale
    }
}
