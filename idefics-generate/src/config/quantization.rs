//! The section `quantization_config` of `config.json`.

use idefics_checkpoint::Checkpoint;
use idefics_kernels::formats::FourBitType;
use idefics_nn::{ConfigError, PackedFormat, Quantization};
use serde::{Deserialize, Serialize};

/// Value of `quantization_config.quant_method` in int8 and q4 folders written by this crate.
pub(crate) const QUANT_METHOD: &str = "idefics";
const BITSANDBYTES: &str = "bitsandbytes";
/// Values of `quant_method` for int4 weights. Their other settings are checked when the checkpoint is opened.
const INT4: [&str; 3] = ["awq", "gptq", "compressed-tensors"];
/// Name of the head. The head is not quantised, unless `llm_int8_skip_modules` is a list without it.
pub(crate) const HEAD: &str = "lm_head";

/// How the weights of a folder are quantised, or should be quantised on load. Unknown keys are ignored.
///
/// Source: `BitsAndBytesConfig`, Transformers 5.23.0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QuantizationConfig {
    /// The quantisation library; `None` means `bitsandbytes`.
    pub quant_method: Option<String>,
    /// Whether linear layers have four-bit codes.
    pub load_in_4bit: Option<bool>,
    /// Whether linear layers have eight-bit codes.
    pub load_in_8bit: Option<bool>,
    /// `fp4` or `nf4`; the default is `fp4`.
    pub bnb_4bit_quant_type: Option<String>,
    /// Whether the scales of four-bit codes are also rounded to eight bits.
    pub bnb_4bit_use_double_quant: Option<bool>,
    /// Modules that are not quantised: names of modules, or prefixes or suffixes of names. `None` means only the head.
    pub llm_int8_skip_modules: Option<Vec<String>>,
}

impl QuantizationConfig {
    /// Rejects quantisation methods that are not supported.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] with the supported values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let is_known = |method: &str| [BITSANDBYTES, QUANT_METHOD].contains(&method) || INT4.contains(&method);
        if let Some(method) = self.quant_method.as_deref().filter(|method| !is_known(method)) {
            return Err(ConfigError::Unsupported {
                field: "quantization_config.quant_method",
                value: method.to_owned(),
                supported: "awq, gptq, compressed-tensors, bitsandbytes, idefics; otherwise use the original \
                            checkpoint with --quantize",
            });
        }
        match (self.bits(), self.bnb_4bit_quant_type.as_deref()) {
            (Some(4), Some(kind)) if !["fp4", "nf4"].contains(&kind) => Err(ConfigError::Unsupported {
                field: "quantization_config.bnb_4bit_quant_type",
                value: kind.to_owned(),
                supported: "fp4, nf4",
            }),
            _ => Ok(()),
        }
    }

    /// Returns the quantisation to apply on load. `None` unless this section requests quantisation by bitsandbytes and
    /// the checkpoint holds unquantised weights. (The reference assumes that the weights are quantised already, and
    /// fails if they are not.)
    pub(crate) fn on_load(&self, checkpoint: &Checkpoint) -> Option<Quantization> {
        let is_bitsandbytes = self.quant_method.as_deref().is_none_or(|method| method == BITSANDBYTES);
        let bits = self.bits().filter(|_| is_bitsandbytes && !checkpoint.is_quantized())?;
        let format = match (bits, self.bnb_4bit_quant_type.as_deref()) {
            (8, _) => PackedFormat::Int8,
            (_, Some("nf4")) => PackedFormat::FourBit(FourBitType::Nf4),
            _ => PackedFormat::FourBit(FourBitType::Fp4),
        };
        Some(Quantization {
            format,
            double_quant: self.bnb_4bit_use_double_quant == Some(true),
            modules_to_not_convert: self.llm_int8_skip_modules.clone().unwrap_or_else(|| vec![HEAD.to_owned()]),
        })
    }

    fn bits(&self) -> Option<u32> {
        match (self.load_in_4bit, self.load_in_8bit) {
            (Some(true), _) => Some(4),
            (_, Some(true)) => Some(8),
            _ => None,
        }
    }
}
