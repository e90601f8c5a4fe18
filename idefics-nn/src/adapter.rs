//! A trainable side path of low rank beside a linear layer.
//!
//! Paper: <https://arxiv.org/abs/2106.09685>.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops;

/// LoRA: adds `scale · (x Aᵀ) Bᵀ` to the output of a [`crate::Linear`]. The weight itself stays as it is, so that it may
/// be in any format.
#[derive(Module, Debug)]
pub struct Adapter {
    /// A, `[rank, d_in]`.
    pub lora_a: Param<Tensor<2>>,
    /// B, `[d_out, rank]`.
    pub lora_b: Param<Tensor<2>>,
    /// Factor of the side path: α / r.
    pub scale: f64,
}

impl Adapter {
    /// An adapter of A, `[rank, d_in]`, and B, `[d_out, rank]`.
    ///
    /// # Panics
    /// If the ranks differ.
    pub fn new(lora_a: Tensor<2>, lora_b: Tensor<2>, scale: f64) -> Self {
        assert_eq!(lora_a.dims()[0], lora_b.dims()[1], "A and B have one rank");
        Self { lora_a: Param::from_tensor(lora_a), lora_b: Param::from_tensor(lora_b), scale }
    }

    /// `[d_out, d_in]` of the layers that it fits.
    pub fn dims(&self) -> [usize; 2] {
        [self.lora_b.lazy_shape()[0], self.lora_a.lazy_shape()[1]]
    }

    /// `scale · (x Aᵀ) Bᵀ`: `[n_rows, d_in]` in, `[n_rows, d_out]` out.
    pub(crate) fn forward(&self, rows: Tensor<2>) -> Tensor<2> {
        let down = ops::dense_product(rows, self.lora_a.val(), None); // [n_rows, rank]
        ops::dense_product(down, self.lora_b.val(), None) * self.scale
    }
}
