//! How a model's weights are read and held.

use burn::tensor::DType;
use idefics_nn::LoadOptions;
use idefics_nn::checkpoint::Pickles;

/// How a model's weights are read and held; a [`DType`] alone makes plain numbers of safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightOptions {
    /// F32, BF16 or F16.
    pub dtype: DType,
    /// Whether PyTorch pickles are read where a folder has no safetensors.
    pub pickles: Pickles,
}

impl From<DType> for WeightOptions {
    fn from(dtype: DType) -> Self {
        Self { dtype, pickles: Pickles::Refused }
    }
}

impl WeightOptions {
    /// The same for the loader.
    pub(crate) fn load_options<'a>(&self, tied: &'a [(&'a str, &'a str)]) -> LoadOptions<'a> {
        LoadOptions { dtype: self.dtype, tied, ..LoadOptions::default() }
    }
}
