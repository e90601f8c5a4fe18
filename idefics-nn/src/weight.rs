//! The weight of a linear layer: dense, or packed as codes and scales.

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

use crate::{Activations, PackedWeight, ops};

/// The weight of a [`crate::Linear`], `[d_out, d_in]`. Its name in a checkpoint is the name of the field that
/// holds it.
///
/// Loading can turn a dense weight into a packed one, and a packed one into a dense one. [`Module`] is implemented by
/// hand, because a derived implementation cannot change the variant. In place of a packed weight, mappers see a
/// parameter to which this weight is attached.
#[expect(clippy::large_enum_variant, reason = "models have few weights, and Burn does not support boxed modules")]
#[derive(Debug, Clone)]
pub enum Weight {
    /// Dense values, random until a checkpoint is loaded.
    Dense(Param<Tensor<2>>),
    /// Codes and scales. They are never trained. Burn's visitors and mappers see a parameter whose value is dequantised
    /// on demand. A mapper that changes this value makes the weight dense. A [`crate::ParameterVisitor`] sees the
    /// packed weight itself, and a [`crate::ParameterMapper`] keeps it by default.
    Packed(PackedWeight),
}

impl Weight {
    /// Computes `x Wᵀ + b`: takes `[n_rows, d_in]` and `[d_out]`, and returns `[n_rows, d_out]`.
    pub(crate) fn product(&self, rows: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => ops::dense_product(rows, weight.val(), bias),
            Self::Packed(weight) => weight.product(rows, bias),
        }
    }

    /// Returns the device of the weight, without initialising a lazy weight.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.lazy_device(),
            Self::Packed(weight) => weight.device(),
        }
    }

    /// Returns the element type to which activations are rounded for the product.
    pub(crate) fn activations(&self) -> Activations {
        match self {
            Self::Dense(_) => Activations::F32,
            Self::Packed(weight) => weight.activations(),
        }
    }

    /// Returns `[d_out, d_in]`, without initialising a lazy weight.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.lazy_shape().dims(),
            Self::Packed(weight) => weight.dims(),
        }
    }
}

impl Module for Weight {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Dense(weight) => weight.collect_devices(devices),
            Self::Packed(weight) => weight.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.fork(device)),
            Self::Packed(weight) => Self::Packed(weight.fork(device)),
        }
    }

    fn to_device(self, device: &Device) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.to_device(device)),
            Self::Packed(weight) => Self::Packed(weight.to_device(device)),
        }
    }

    fn train(self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.train()),
            Self::Packed(weight) => Self::Packed(weight.train()),
        }
    }

    fn valid(&self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.valid()),
            Self::Packed(weight) => Self::Packed(weight.valid()),
        }
    }

    fn materialize(self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.materialize()),
            Self::Packed(weight) => Self::Packed(weight),
        }
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match self {
            Self::Dense(weight) => weight.visit(visitor),
            Self::Packed(weight) => visitor.visit_float(&weight.as_param()),
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let weight = match self {
            Self::Dense(weight) => Module::map(weight, mapper),
            Self::Packed(weight) => mapper.map_float(weight.as_param()),
        };
        match PackedWeight::carried_by(&weight) {
            Some(packed) => Self::Packed(packed.clone()),
            None => Self::Dense(weight),
        }
    }

    fn num_params(&self) -> usize {
        self.dims().into_iter().product()
    }
}

impl ModuleDisplay for Weight {}

impl ModuleDisplayDefault for Weight {
    fn content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Dense(weight) => content.add("dense", weight).optional(),
            Self::Packed(weight) => content.add("packed", weight).optional(),
        }
    }
}
