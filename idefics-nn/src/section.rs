//! Sections of `config.json` that omit keys.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a section of `config.json`, for example `vision_config`. Keys that the section omits get their values from
/// `defaults`.
///
/// Which defaults are right depends on the model family: the same omitted key can have different values in two
/// families.
///
/// # Errors
/// The error of `serde_json` if a value has the wrong type, or the section is not an object.
pub fn from_section<C: Serialize + DeserializeOwned>(section: Value, defaults: &C) -> Result<C, serde_json::Error> {
    serde_json::from_value(fill_section(section, defaults))
}

/// Adds the keys of `defaults` that a section of `config.json` omits. A section that is not an object stays as it is.
pub fn fill_section(section: Value, defaults: &impl Serialize) -> Value {
    match (section, serde_json::to_value(defaults)) {
        (Value::Object(mut section), Ok(Value::Object(mut filled))) => {
            filled.append(&mut section);
            Value::Object(filled)
        }
        (section, _) => section,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_missing_keys_are_filled() {
        let defaults = json!({"width": 8, "heads": 2, "window": 16});
        let filled = fill_section(json!({"heads": 4, "window": null, "other": true}), &defaults);
        assert_eq!(filled, json!({"width": 8, "heads": 4, "window": null, "other": true}));
        assert_eq!(fill_section(json!("text"), &defaults), json!("text"));
        assert!(from_section(json!(3), &[1, 2]).is_err());
    }
}
