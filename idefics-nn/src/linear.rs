//! The linear layer: one type for every weight format.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};

use crate::init::normal;
use crate::{Activations, Adapter, Weight, ops};

/// Computes `x Wᵀ + b` with a weight that is not in a [`Linear`], such as the reshaped weight of a convolution.
///
/// # Shapes
/// - `rows` (x): `[n_rows, d_in]`
/// - `weight` (W): `[d_out, d_in]`
/// - `bias` (b): `[d_out]`
/// - returns `[n_rows, d_out]`
///
/// # Panics
/// If the widths do not match.
pub fn linear(rows: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    ops::dense_product(rows, weight, bias)
}

/// A linear layer, `y = x Wᵀ + b`, with the weight in PyTorch's layout. With an adapter, the output is
/// `y + scale · (x Aᵀ) Bᵀ`.
///
/// The fields are private, so that models do not depend on the format of the weight. A model only calls
/// [`Linear::new`] or [`Linear::new_without_bias`], and [`Linear::forward`].
#[derive(Module, Debug)]
pub struct Linear {
    /// The weight W, `[d_out, d_in]`.
    weight: Weight,
    /// The bias b, `[d_out]`.
    bias: Option<Param<Tensor<1>>>,
    /// LoRA adapter, trained while the weight stays frozen.
    adapter: Option<Adapter>,
}

impl Linear {
    /// Creates a layer with a bias and random weights, which loading a checkpoint replaces.
    pub fn new(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { bias: Some(normal([d_out], 0.0, 0.02, device)), ..Self::new_without_bias(d_in, d_out, device) }
    }

    /// Creates a layer without a bias and with random weights, which loading a checkpoint replaces.
    pub fn new_without_bias(d_in: usize, d_out: usize, device: &Device) -> Self {
        Self { weight: Weight::Dense(normal([d_out, d_in], 0.0, 0.02, device)), bias: None, adapter: None }
    }

    /// Replaces the layer's adapter. `None` removes it.
    ///
    /// # Panics
    /// If the shape of the adapter does not match the layer.
    #[must_use]
    pub fn with_adapter(self, adapter: Option<Adapter>) -> Self {
        assert!(
            adapter.as_ref().is_none_or(|adapter| adapter.dims() == self.dims()),
            "the adapter must have the shape of the layer"
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
    /// If the size of the last axis is not `d_in`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        let mut dims = input.dims();
        let d_in = dims[D - 1];
        let n_rows = dims[..D - 1].iter().product();
        // All rows are multiplied in one product: a batched product would read the weight once per batch entry.
        let rows = input.reshape([n_rows, d_in]);
        let side = self.adapter.as_ref().map(|adapter| adapter.forward(rows.clone())); // [n_rows, d_out]
        let mut output = self.weight.product(rows, self.bias.as_ref().map(Param::val)); // [n_rows, d_out]
        if let Some(side) = side {
            output = output + side;
        }
        dims[D - 1] = output.dims()[1];
        output.reshape(dims)
    }

    /// Moves activations to the device of the weight. If they move to the CPU, they are cast to f32, like all
    /// activations there.
    pub fn to_weight_device<const D: usize>(&self, activations: Tensor<D>) -> Tensor<D> {
        let device = self.weight.device();
        if activations.device() == device {
            return activations;
        }
        let activations = activations.to_device(&device);
        if ops::is_cpu(&device) { activations.cast(DType::F32) } else { activations }
    }

    /// Returns the format to which activations are rounded for the product. Attention over the layer's output uses the
    /// same format.
    pub fn activations(&self) -> Activations {
        self.weight.activations()
    }

    /// Returns the weight in its own format, dense or packed.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Returns the shape of the weight, `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }
}
