//! `quant_state`: the metadata that bitsandbytes stores with a four-bit weight, as JSON in a tensor of bytes.
//!
//! A weight `X.weight` comes with the tensors `X.weight.absmax`, `X.weight.quant_map` and
//! `X.weight.quant_state.bitsandbytes__nf4` (or `__fp4`); double quantisation adds `X.weight.nested_absmax` and
//! `X.weight.nested_quant_map`.
//!
//! Source: bitsandbytes 0.50.2, `QuantState.as_dict` and `QuantState.from_dict`.

use idefics_kernels::formats::{BLOCK, FourBitType, NESTED_BLOCK};
use serde::{Deserialize, Serialize};

use crate::StoredWeightError;

/// How to interpret the codes of a four-bit weight.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantState {
    /// The four-bit type, which maps the codes to numbers.
    pub kind: FourBitType,
    /// Shape of the weight, `[d_out, d_in]`.
    pub dims: [usize; 2],
    /// The type of the weight before it was quantised; bitsandbytes computes in this type.
    pub dtype: QuantDtype,
    /// With double quantisation, the mean of the scales, which was subtracted before they were quantised.
    pub nested_offset: Option<f32>,
}

/// A floating-point type of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantDtype {
    /// `float32`.
    Float32,
    /// `float16`.
    Float16,
    /// `bfloat16`.
    Bfloat16,
}

/// The JSON object, with its keys in the order in which bitsandbytes writes them.
#[derive(Debug, Serialize, Deserialize)]
struct Json {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    #[serde(flatten)]
    nested: Option<NestedJson>,
}

#[derive(Debug, Serialize, Deserialize)]
struct NestedJson {
    nested_blocksize: usize,
    nested_dtype: String,
    nested_offset: f64,
}

impl QuantState {
    /// Parses the bytes of a `quant_state` tensor.
    ///
    /// # Errors
    /// [`StoredWeightError::QuantState`] if the bytes are not JSON or a required key is missing.
    /// [`StoredWeightError::QuantStateField`] for an unsupported value: an unknown type, a block size other than 64
    /// (256 for the nested scales), or a shape that is not `[d_out, d_in]`.
    pub fn parse(bytes: &[u8]) -> Result<Self, StoredWeightError> {
        let malformed = |source| StoredWeightError::QuantState { bytes: bytes.len(), source };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(malformed)?;
        // The nested keys are parsed separately, so that a missing key is an error. Serde would silently set an
        // `Option` of a flattened struct to `None`.
        let has_nested = value.as_object().is_some_and(|keys| keys.keys().any(|key| key.starts_with("nested_")));
        let nested: Option<NestedJson> =
            has_nested.then(|| serde_json::from_value(value.clone())).transpose().map_err(malformed)?;
        let json: Json = serde_json::from_value(value).map_err(malformed)?;

        let kind = match json.quant_type.as_str() {
            "nf4" => FourBitType::Nf4,
            "fp4" => FourBitType::Fp4,
            _ => return field("quant_type", &json.quant_type, "nf4 or fp4"),
        };
        if json.blocksize != BLOCK {
            return field("blocksize", &json.blocksize, "64");
        }
        let [d_out, d_in] = json.shape[..] else {
            return field("shape", &json.shape, "[d_out, d_in]");
        };
        let dtype = match json.dtype.as_str() {
            "float32" => QuantDtype::Float32,
            "float16" => QuantDtype::Float16,
            "bfloat16" => QuantDtype::Bfloat16,
            _ => return field("dtype", &json.dtype, "float32, float16 or bfloat16"),
        };
        let nested_offset = match nested {
            None => None,
            Some(nested) if nested.nested_blocksize != NESTED_BLOCK => {
                return field("nested_blocksize", &nested.nested_blocksize, "256");
            }
            Some(nested) if nested.nested_dtype != "float32" => {
                return field("nested_dtype", &nested.nested_dtype, "float32");
            }
            Some(nested) if !(nested.nested_offset as f32).is_finite() => {
                return field("nested_offset", &nested.nested_offset, "a finite number");
            }
            Some(nested) => Some(nested.nested_offset as f32),
        };
        Ok(Self { kind, dims: [d_out, d_in], dtype, nested_offset })
    }

    /// Serialises the state to the bytes of a `quant_state` tensor.
    ///
    /// # Panics
    /// If `nested_offset` is not finite.
    pub fn to_bytes(&self) -> Vec<u8> {
        let dtype = match self.dtype {
            QuantDtype::Float32 => "float32",
            QuantDtype::Float16 => "float16",
            QuantDtype::Bfloat16 => "bfloat16",
        };
        let nested = self.nested_offset.map(|offset| {
            assert!(offset.is_finite(), "nested_offset must be finite, but is {offset}");
            let nested_dtype = "float32".to_owned();
            NestedJson { nested_blocksize: NESTED_BLOCK, nested_dtype, nested_offset: offset.into() }
        });
        let quant_type = self.kind.name().to_owned();
        let json = Json { quant_type, blocksize: BLOCK, dtype: dtype.to_owned(), shape: self.dims.into(), nested };
        serde_json::to_vec(&json).expect("strings and finite numbers always serialise")
    }
}

fn field<T>(field: &'static str, found: &dyn std::fmt::Debug, expected: &'static str) -> Result<T, StoredWeightError> {
    Err(StoredWeightError::QuantStateField { field, found: format!("{found:?}"), expected })
}
