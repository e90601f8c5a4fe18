//! Fills in missing keys of `config.json` sections whose defaults depend on the model family.

use idefics_nn::ConfigError;
use serde::Serialize;
use serde_json::Value;

use super::defaults;

/// Fills in missing keys of `text_config` with the defaults of its `model_type`, or of `default_type` if it has no
/// `model_type`. A missing `text_config` stays missing. Top-level keys whose value is null are dropped.
///
/// # Errors
/// [`ConfigError::Unsupported`] if `model_type` is neither `mistral` nor `llama`.
pub(super) fn fill_text_config(file: &mut Value, default_type: &str) -> Result<(), ConfigError> {
    if let Some(file) = file.as_object_mut() {
        file.retain(|_, section| !section.is_null());
    }
    let text_config = file.get("text_config");
    let model_type = text_config.and_then(|text| text.get("model_type")).and_then(Value::as_str);
    match model_type.unwrap_or(default_type) {
        "mistral" => fill_section(file, "text_config", &defaults::mistral_config()),
        "llama" => fill_section(file, "text_config", &defaults::llama_config()),
        other => {
            let (field, value) = ("text_config.model_type", other.to_owned());
            return Err(ConfigError::Unsupported { field, value, supported: "mistral, llama" });
        }
    }
    Ok(())
}

/// Fills in missing keys of the section `name` with those of `defaults`. A missing section stays missing.
pub(super) fn fill_section(file: &mut Value, name: &str, defaults: &impl Serialize) {
    if let Some(section) = file.get_mut(name) {
        *section = idefics_nn::fill_section(section.take(), defaults);
    }
}
