//! The linear layer: one type, whatever format its weight is in.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::init::normal;
use crate::{Activations, Adapter, Weight, ops};

/// `x Wᵀ + b` for a weight that is no layer's own matrix: `[n_rows, d_in]`, `[d_out, d_in]` and `[d_out]` in,
/// `[n_rows, d_out]` out.
///
/// # Panics
/// If the widths differ.
pub fn product(rows: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    ops::dense_product(rows, weight, bias)
}

/// `y = x Wᵀ + b`, the weight kept as PyTorch stores it; with an adapter, `y + scale · (x Aᵀ) Bᵀ`.
///
/// The fields are private so that a weight can be held in other formats without any model file changing;
/// a model only calls [`Linear::new`] or [`Linear::new_without_bias`], and [`Linear::forward`].
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_out, d_in]`.
    weight: Weight,
    /// `[d_out]`.
    bias: Option<Param<Tensor<1>>>,
    /// Trained beside the weight.
    adapter: Option<Adapter>,
}

impl Linear {
    /// A layer with a bias, random until a checkpoint is loaded.
    pub fn new(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { bias: Some(normal([d_out], 0.0, 0.02, device)), ..Self::new_without_bias(d_in, d_out, device) }
    }

    /// A layer without a bias, random until a checkpoint is loaded.
    pub fn new_without_bias(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { weight: Weight::Dense(normal([d_out, d_in], 0.0, 0.02, device)), bias: None, adapter: None }
    }

    /// The layer with an adapter in place of the one that it has.
    ///
    /// # Panics
    /// If the adapter is of another shape.
    #[must_use]
    pub fn with_adapter(self, adapter: Option<Adapter>) -> Self {
        assert!(
            adapter.as_ref().is_none_or(|adapter| adapter.dims() == self.dims()),
            "an adapter of the layer's shape"
        );
        Self { adapter, ..self }
    }

    /// Applies the layer to the last axis.
    ///
    /// # Shapes
    /// - `input`: `[.., d_in]`
    /// - returns `[.., d_out]`
    ///
    /// # Panics
    /// If the last axis is not `d_in`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let mut dims = input.dims();
        let d_in = dims[D - 1];
        let n_rows = dims[..D - 1].iter().product();
        // One product over all rows: a batch of products would read the weight once for each.
        let rows = input.reshape([n_rows, d_in]);
        let side = self.adapter.as_ref().map(|adapter| adapter.forward(rows.clone())); // [n_rows, d_out]
        let mut output = self.weight.product(rows, self.bias.as_ref().map(Param::val)); // [n_rows, d_out]
        if let Some(side) = side {
            output = output + side;
        }
        dims[D - 1] = output.dims()[1];
        output.reshape(dims)
    }

    /// Activations of another device where the weight is: on the CPU in f32, as they all are there.
    pub fn receive<const D: usize>(&self, activations: Tensor<D>) -> Tensor<D> {
        let device = self.weight.device();
        if activations.device() == device {
            return activations;
        }
        let activations = activations.to_device(&device);
        if ops::computes_on(&device) { activations.cast(DType::F32) } else { activations }
    }

    /// The format that activations are rounded to for the product. Attention over the layer's output uses it too.
    pub fn activations(&self) -> Activations {
        self.weight.activations()
    }

    /// The weight as it is held.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }
}
