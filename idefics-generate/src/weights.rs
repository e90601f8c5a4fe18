//! How a model's weights are read and held.

use std::fmt;
use std::str::FromStr;

use burn::tensor::DType;
use idefics_checkpoint::Pickles;
use idefics_nn::{Activations, LoadOptions, PackedFormat, Quantization};

use crate::config::HEAD;

/// How a model's weights are read and held; a [`DType`] alone makes plain numbers of safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightOptions {
    /// The dtype of what is not quantised; see [`idefics_nn::LoadOptions::dtype`] for what `None` means.
    pub dtype: Option<DType>,
    /// What linear layers are quantised to while they are loaded.
    pub quantize: WeightFormat,
    /// Whether the scales of NF4 and FP4 are rounded to eight bits too, as `bnb_4bit_use_double_quant` does.
    pub double_quant: bool,
    /// Whether the vision tower is quantised with the rest, as the reference does.
    pub quantize_vision: bool,
    /// Whether the head (`lm_head`) is too, which the reference leaves as it is.
    pub quantize_head: bool,
    /// What the activations of quantised layers are multiplied as.
    pub activations: Activations,
    /// Whether PyTorch pickles are read where a folder has no safetensors.
    pub pickles: Pickles,
}

impl WeightOptions {
    /// Nothing is quantised or cast.
    pub const DEFAULT: Self = Self {
        dtype: None,
        quantize: WeightFormat::None,
        double_quant: false,
        quantize_vision: true,
        quantize_head: false,
        activations: Activations::F32,
        pickles: Pickles::Refused,
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

/// `bf16`, `q4, others as stored`
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
    /// The same for the loader. `of_folder` is what the model's configuration has weights quantised to, which counts
    /// where these options ask for no format.
    pub(crate) fn load_options<'a>(
        &self,
        tied: &'a [(&'a str, &'a str)],
        of_folder: Option<Quantization>,
    ) -> LoadOptions<'a> {
        let (dtype, quantize, activations) = (self.dtype, self.quantization().or(of_folder), self.activations);
        LoadOptions { dtype, quantize, activations, tied, ..LoadOptions::default() }
    }

    /// Source of the head's exception: `get_modules_to_not_convert`, Transformers 5.23.0.
    pub(crate) fn quantization(&self) -> Option<Quantization> {
        let WeightFormat::Packed(format) = self.quantize else { return None };
        let kept = [(self.quantize_head, HEAD), (self.quantize_vision, "model.vision_model")];
        let kept = kept.iter().filter(|(quantized, _)| !quantized).map(|(_, module)| (*module).to_owned());
        Some(Quantization { format, double_quant: self.double_quant, modules_to_not_convert: kept.collect() })
    }
}

/// `--quantize`: the format of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WeightFormat {
    /// Plain numbers, or what the file has quantised already.
    #[default]
    None,
    /// Codes and scales.
    Packed(PackedFormat),
}

/// Not a weight format's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("weight format {name:?}: expected none, {}", PackedFormat::ALL.map(PackedFormat::name).join(", "))]
pub struct UnknownWeightFormat {
    /// What was asked for.
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
