//! Reads how the four-bit weights of a folder are packed (AWQ, GPTQ or compressed-tensors) from its configuration
//! files.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{CheckpointError, TensorEntry};

/// The layouts of four-bit weights with a scale and a zero point per group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Int4Layout {
    /// AutoAWQ's version "gemm": see [`Int4::from_awq`](idefics_kernels::formats::Int4::from_awq).
    Awq,
    /// GPTQ: see [`Int4::from_gptq`](idefics_kernels::formats::Int4::from_gptq).
    Gptq {
        /// Number added to every stored zero point: 1 in the checkpoint format "gptq", 0 in "gptq_v2".
        zero_offset: u8,
    },
    /// compressed-tensors' format "pack-quantized": see
    /// [`Int4::from_compressed_tensors`](idefics_kernels::formats::Int4::from_compressed_tensors).
    CompressedTensors,
}

/// How the four-bit weights of a folder are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Int4Packing {
    pub(crate) layout: Int4Layout,
    /// Number of inputs per group; `None` if a whole row is one group.
    pub(crate) group: Option<NonZeroUsize>,
    /// Whether the checkpoint must store the group of each input, because the inputs of a group are not adjacent.
    pub(crate) needs_index: bool,
}

/// Endings of the names of tensors with packed codes.
const CODES: [&str; 2] = [".qweight", ".weight_packed"];

impl Int4Packing {
    /// Reads `quantization_config` of `config.json`, or the older files `quantize_config.json` (GPTQ) and
    /// `quant_config.json` (AWQ). Returns `None` if no weight is packed in such a layout.
    ///
    /// # Errors
    /// [`CheckpointError::Packing`] for unsupported settings, [`CheckpointError::PackingUnknown`] if there are packed
    /// weights but no settings.
    pub(crate) fn of_folder(
        folder: &Path,
        tensors: &BTreeMap<String, TensorEntry>,
    ) -> Result<Option<Self>, CheckpointError> {
        let path = folder.join("config.json");
        let section = object(&path).and_then(|mut config| match config.remove("quantization_config") {
            Some(Value::Object(section)) => Some(section),
            _ => None,
        });
        let packed = tensors.iter().find(|(name, _)| CODES.iter().any(|suffix| name.ends_with(suffix)));
        if let Some(section) = section.filter(|section| section.contains_key("quant_method")) {
            let section = Section { path, name: "quantization_config.", values: &section };
            return match (section.text("quant_method")?, packed) {
                ("awq", _) => section.awq().map(Some),
                ("gptq", _) => section.gptq().map(Some),
                ("compressed-tensors", _) => section.compressed_tensors().map(Some),
                (_, Some(_)) => Err(section.unsupported("quant_method", "awq, gptq or compressed-tensors")),
                (_, None) => Ok(None),
            };
        }
        let Some((name, entry)) = packed else { return Ok(None) };
        let older = ["quantize_config.json", "quant_config.json"].map(|name| folder.join(name));
        for path in older {
            if let Some(values) = object(&path) {
                let section = Section { path, name: "", values: &values };
                let is_awq = values.contains_key("w_bit") || values.get("quant_method") == Some(&"awq".into());
                return if is_awq { section.awq() } else { section.gptq() }.map(Some);
            }
        }
        Err(CheckpointError::PackingUnknown { file: entry.file.clone(), name: name.clone() })
    }
}

/// Reads the JSON object in a file. Returns `None` if the file is missing or holds no JSON object.
fn object(path: &Path) -> Option<Map<String, Value>> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The settings of a quantisation method.
struct Section<'a> {
    path: PathBuf,
    /// Prefix of the keys in error messages.
    name: &'static str,
    values: &'a Map<String, Value>,
}

impl Section<'_> {
    /// Reads settings of AutoAWQ. Source: `AwqConfig`, Transformers 5.23.0; `AwqConfig` of AutoAWQ for the older keys.
    fn awq(&self) -> Result<Int4Packing, CheckpointError> {
        self.expect(&["bits", "w_bit"], &[4.into()], "4")?;
        self.expect(&["zero_point"], &[true.into()], "true")?;
        let key = self.key(&["version", "format"]);
        let version = self.values.get(key).and_then(Value::as_str).map(str::to_lowercase);
        if self.has(key) && version.as_deref() != Some("gemm") {
            return Err(self.unsupported(key, "gemm"));
        }
        let group = self.group(self.key(&["group_size", "q_group_size"]))?;
        Ok(Int4Packing { layout: Int4Layout::Awq, group, needs_index: false })
    }

    /// Reads settings of GPTQ. Source: `GPTQConfig`, Transformers 5.23.0; `QuantizeConfig`, GPTQModel.
    fn gptq(&self) -> Result<Int4Packing, CheckpointError> {
        self.expect(&["bits"], &[4.into()], "4")?;
        let key = self.key(&["checkpoint_format", "format"]);
        let zero_offset = match self.values.get(key).filter(|value| !value.is_null()).map(Value::as_str) {
            None | Some(Some("gptq")) => 1,
            Some(Some("gptq_v2")) => 0,
            _ => return Err(self.unsupported(key, "gptq or gptq_v2")),
        };
        // Keys that begin with "-:" name modules that are not quantised.
        let overrides = self.values.get("dynamic").and_then(Value::as_object);
        if overrides.is_some_and(|modules| modules.keys().any(|module| !module.starts_with("-:"))) {
            return Err(self.unsupported("dynamic", "the same settings for all modules"));
        }
        let group = self.group(self.key(&["group_size"]))?;
        let needs_index = group.is_some() && self.values.get("desc_act") == Some(&true.into());
        Ok(Int4Packing { layout: Int4Layout::Gptq { zero_offset }, group, needs_index })
    }

    /// Reads settings of compressed-tensors. Source: `QuantizationConfig` and `QuantizationArgs`, compressed-tensors
    /// 0.20.1.
    fn compressed_tensors(&self) -> Result<Int4Packing, CheckpointError> {
        self.expect(&["format"], &["pack-quantized".into()], "pack-quantized")?;
        for key in ["kv_cache_scheme", "transform_config"] {
            let is_set = |value: &Value| !value.is_null() && value.as_object().is_none_or(|object| !object.is_empty());
            if self.values.get(key).is_some_and(is_set) {
                return Err(self.unsupported(key, "null"));
            }
        }
        let sparsity = self.values.get("sparsity_config").and_then(|config| config.get("format"));
        if sparsity.is_some_and(|format| format != "dense") {
            return Err(self.unsupported("sparsity_config", "null, or the format `dense`"));
        }
        let groups = self.values.get("config_groups").and_then(Value::as_object);
        let mut packings = groups.into_iter().flatten().map(|(name, scheme)| self.scheme(name, scheme));
        let first = packings.next().unwrap_or_else(|| Err(self.unsupported("config_groups", "a scheme")))?;
        for packing in packings {
            if packing? != first {
                return Err(self.unsupported("config_groups", "the same settings for all weights"));
            }
        }
        Ok(first)
    }

    /// Reads one scheme of compressed-tensors: the settings for some of the modules.
    fn scheme(&self, name: &str, scheme: &Value) -> Result<Int4Packing, CheckpointError> {
        let unsupported = |key: &str, found: &Value, expected| CheckpointError::Packing {
            path: self.path.clone(),
            field: format!("{}config_groups.{name}.{key}", self.name),
            found: found.to_string(),
            expected,
        };
        for key in ["input_activations", "output_activations"] {
            if !scheme[key].is_null() {
                return Err(unsupported(key, &scheme[key], "null, because quantised activations are not supported"));
            }
        }
        let weights = &scheme["weights"];
        let check = |key: &str, default: Value, allowed: &[Value], expected| {
            let found = weights.get(key).unwrap_or(&default);
            let is_allowed = allowed.contains(found);
            if is_allowed { Ok(()) } else { Err(unsupported(&format!("weights.{key}"), found, expected)) }
        };
        check("num_bits", Value::Null, &[4.into()], "4")?;
        check("type", "int".into(), &["int".into()], "int")?;
        check("dynamic", false.into(), &[false.into()], "false")?;
        check("strategy", Value::Null, &[Value::Null, "group".into(), "channel".into()], "group or channel")?;
        let group = match (&weights["strategy"], &weights["group_size"]) {
            (Value::String(strategy), _) if strategy == "channel" => None,
            (Value::Null, Value::Null) => None,
            (_, size) => match (size.as_i64(), size.as_u64().and_then(|size| usize::try_from(size).ok())) {
                (Some(-1), _) => None,
                (_, Some(size)) if size > 0 => NonZeroUsize::new(size),
                _ => return Err(unsupported("weights.group_size", size, "a positive number, or -1")),
            },
        };
        let needs_index = group.is_some() && [&true.into(), &"group".into()].contains(&&weights["actorder"]);
        Ok(Int4Packing { layout: Int4Layout::CompressedTensors, group, needs_index })
    }

    /// Returns whether the key has a value other than null.
    fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// Returns the first of these keys that has a value. If none has a value, returns the first key.
    fn key<'k>(&self, keys: &[&'k str]) -> &'k str {
        keys.iter().find(|key| self.has(key)).unwrap_or(&keys[0])
    }

    /// Checks that a setting is missing or has one of the allowed values. `keys` are the alternative names of the
    /// setting.
    fn expect(&self, keys: &[&str], allowed: &[Value], expected: &'static str) -> Result<(), CheckpointError> {
        let key = self.key(keys);
        let is_allowed = !self.has(key) || self.values.get(key).is_some_and(|value| allowed.contains(value));
        if is_allowed { Ok(()) } else { Err(self.unsupported(key, expected)) }
    }

    fn text(&self, key: &str) -> Result<&str, CheckpointError> {
        let text = self.values.get(key).and_then(Value::as_str);
        text.ok_or_else(|| self.unsupported(key, "a name"))
    }

    /// Reads the group size, which is 128 by default. Returns `None` for −1, which makes a whole row one group.
    fn group(&self, key: &str) -> Result<Option<NonZeroUsize>, CheckpointError> {
        const DEFAULT: NonZeroUsize = NonZeroUsize::new(128).expect("128 is not 0");
        let Some(size) = self.values.get(key).filter(|size| !size.is_null()) else { return Ok(Some(DEFAULT)) };
        if size.as_i64() == Some(-1) {
            return Ok(None);
        }
        let size = size.as_u64().and_then(|size| usize::try_from(size).ok()).and_then(NonZeroUsize::new);
        size.map(Some).ok_or_else(|| self.unsupported(key, "a positive number, or -1"))
    }

    fn unsupported(&self, key: &str, expected: &'static str) -> CheckpointError {
        let (path, field) = (self.path.clone(), format!("{}{key}", self.name));
        let found = self.values.get(key).map_or("missing".to_owned(), Value::to_string);
        CheckpointError::Packing { path, field, found, expected }
    }
}
