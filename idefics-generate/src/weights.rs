//! Options for reading the weights of a model, and for the format in which they are held.

use std::fmt;
use std::str::FromStr;

use burn::tensor::DType;
use idefics_checkpoint::PicklePolicy;
use idefics_nn::{Activations, LoadOptions, PackedFormat, Quantization};

use crate::config::HEAD;

/// How weights are read, and in which format they are held in memory. A [`DType`] converts into options without
/// quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightOptions {
    /// The dtype of unquantised weights. [`idefics_nn::LoadOptions::dtype`] explains what `None` means.
    pub dtype: Option<DType>,
    /// The format to which linear layers are quantised while they are loaded.
    pub quantize: WeightFormat,
    /// Whether the scales of NF4 and FP4 are also rounded to eight bits, like `bnb_4bit_use_double_quant`.
    pub double_quant: bool,
    /// Whether the vision tower is quantised too, as in the reference.
    pub quantize_vision: bool,
    /// Whether the head (`lm_head`) is quantised too. The reference does not quantise it.
    pub quantize_head: bool,
    /// Element type of the activations in products with quantised weights.
    pub activations: Activations,
    /// Whether PyTorch pickles may be read if a folder has no safetensors files.
    pub pickles: PicklePolicy,
}

impl WeightOptions {
    /// Options without quantisation and without conversion.
    pub const DEFAULT: Self = Self {
        dtype: None,
        quantize: WeightFormat::None,
        double_quant: false,
        quantize_vision: true,
        quantize_head: false,
        activations: Activations::F32,
        pickles: PicklePolicy::Refused,
    };
}

impl Default for WeightOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl From<DType> for WeightOptions {
    fn from(dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..Self::default() }
    }
}

impl From<Option<DType>> for WeightOptions {
    fn from(dtype: Option<DType>) -> Self {
        Self { dtype, ..Self::default() }
    }
}

/// Writes a summary such as `bf16`, or `q4, others as stored`.
impl fmt::Display for WeightOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.dtype.map_or("as stored".to_owned(), |dtype| format!("{dtype:?}").to_lowercase());
        match self.quantize {
            WeightFormat::None => formatter.write_str(&plain),
            WeightFormat::Packed(format) => write!(formatter, "{}, others {plain}", format.name()),
        }
    }
}

impl WeightOptions {
    /// Converts the options to those of the loader. `of_folder` is the quantisation that the model's configuration
    /// requests. It applies only if `self` requests none.
    pub(crate) fn load_options<'a>(
        &self,
        tied: &'a [(&'a str, &'a str)],
        of_folder: Option<Quantization>,
    ) -> LoadOptions<'a> {
        let (dtype, quantize, activations) = (self.dtype, self.quantization().or(of_folder), self.activations);
        LoadOptions { dtype, quantize, activations, tied, ..LoadOptions::default() }
    }

    /// Returns the quantisation, if one is requested. By default, the head is not quantised. Source:
    /// `get_modules_to_not_convert`, Transformers 5.23.0.
    pub(crate) fn quantization(&self) -> Option<Quantization> {
        let WeightFormat::Packed(format) = self.quantize else { return None };
        let kept = [(self.quantize_head, HEAD), (self.quantize_vision, "model.vision_model")];
        let kept = kept.iter().filter(|(quantized, _)| !quantized).map(|(_, module)| (*module).to_owned());
        Some(Quantization { format, double_quant: self.double_quant, modules_to_not_convert: kept.collect() })
    }
}

/// The format of linear layers, as given with `--quantize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WeightFormat {
    /// No quantisation. Weights that are quantised in the file stay quantised.
    #[default]
    None,
    /// Quantised to codes and scales.
    Packed(PackedFormat),
}

/// Error: the name of a weight format is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("weight format {name:?}: expected none, {}", PackedFormat::ALL.map(PackedFormat::name).join(", "))]
pub struct UnknownWeightFormat {
    /// The requested name.
    pub name: String,
}

impl FromStr for WeightFormat {
    type Err = UnknownWeightFormat;

    fn from_str(name: &str) -> Result<Self, UnknownWeightFormat> {
        let mut formats = PackedFormat::ALL.map(Self::Packed).into_iter().chain([Self::None]);
        formats.find(|format| format.to_string() == name).ok_or_else(|| UnknownWeightFormat { name: name.to_owned() })
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Packed(format) => format.name(),
        })
    }
}
