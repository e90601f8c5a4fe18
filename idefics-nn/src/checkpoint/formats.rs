//! Chooses the format in which each matrix of a model is held.

use burn::tensor::{DType, Device};
use idefics_kernels::formats::PackedFormat;
use safetensors::Dtype;

use super::LoadOptions;
use super::in_place::dense_dtype;
use crate::ops;
use crate::parameters::Matrix;

/// How linear layers are quantised while they are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quantization {
    /// The format to quantise to.
    pub format: PackedFormat,
    /// Whether the scales of NF4 and FP4 are also rounded to eight bits (bitsandbytes' `double_quant`). In memory, the
    /// rounded scales are held as f32 too.
    pub double_quant: bool,
    /// Modules whose linear layers are not quantised: names of modules, including all modules inside them, or suffixes
    /// of names.
    ///
    /// Source: `should_convert_module`, Transformers 5.23.0, without its regular expressions.
    pub modules_to_not_convert: Vec<String>,
}

impl Quantization {
    /// Returns whether the linear layer whose weight is called `name` is quantised.
    pub fn covers(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let is_kept = |kept: &String| {
            let rest = module.strip_prefix(kept.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) || module.ends_with(kept.as_str())
        };
        !self.modules_to_not_convert.iter().any(is_kept)
    }
}

impl LoadOptions<'_> {
    /// Returns how the tensor `name` is quantised, or `None` if it is not.
    pub(super) fn quantization_of(&self, matrix: Option<Matrix>, name: &str) -> Option<&Quantization> {
        let quantization = self.quantize.as_ref().filter(|quantization| quantization.covers(name));
        quantization.filter(|_| matrix == Some(Matrix::Linear) && !self.is_as_stored(name))
    }

    /// Returns the dtype of an unquantised tensor on `device`. `stored` is its dtype in the checkpoint. Without a
    /// checkpoint, `stored` is `None`, and BF16 is assumed. `matrix` is `None` for parameters other than matrices.
    pub(super) fn dtype_of(&self, name: &str, matrix: Option<Matrix>, stored: Option<Dtype>, device: &Device) -> DType {
        let as_stored = stored.map_or(Some(DType::BF16), dense_dtype).unwrap_or(DType::F32);
        match self.dtype {
            // On the CPU, parameters other than matrices are f32, like all activations.
            _ if ops::is_cpu(device) && matrix.is_none() => DType::F32,
            _ if self.is_as_stored(name) => as_stored,
            Some(dtype) => dtype,
            None if ops::computes_on(device) => as_stored,
            None => DType::F32,
        }
    }

    fn is_as_stored(&self, name: &str) -> bool {
        self.as_stored.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}
