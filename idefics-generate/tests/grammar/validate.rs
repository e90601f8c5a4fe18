//! A small validator of JSON schemas. It reads numbers of any size, which `serde_json::Value` does not.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

/// Returns why a text is not JSON, or does not satisfy the schema.
pub(super) fn check(schema: &Value, text: &str) -> Result<(), String> {
    let value: &RawValue = serde_json::from_str(text).map_err(|error| format!("{error} in {text:?}"))?;
    validate(schema, schema, value).map_err(|reason| format!("{reason} in {text:?}"))
}

fn validate(root: &Value, schema: &Value, value: &RawValue) -> Result<(), String> {
    let Some(keys) = schema.as_object() else {
        return if schema == &Value::Bool(false) { Err("false".to_owned()) } else { Ok(()) };
    };
    for (key, expected) in keys {
        let holds = match key.as_str() {
            "type" => match expected {
                Value::Array(types) => types.iter().any(|expected| is_type(value, expected)),
                expected => is_type(value, expected),
            },
            "enum" => expected.as_array().unwrap().iter().any(|expected| equals(expected, value)),
            "const" => equals(expected, value),
            "$ref" => {
                let pointer = expected.as_str().unwrap().strip_prefix('#').unwrap();
                return validate(root, root.pointer(pointer).unwrap(), value);
            }
            "anyOf" => expected.as_array().unwrap().iter().any(|schema| validate(root, schema, value).is_ok()),
            "allOf" => expected.as_array().unwrap().iter().all(|schema| validate(root, schema, value).is_ok()),
            "$defs" => true,
            "properties" | "required" | "additionalProperties" | "patternProperties" => {
                object(value).is_none_or(|object| object_holds(root, keys, key, &object))
            }
            "items" | "prefixItems" | "minItems" | "maxItems" => {
                list(value).is_none_or(|items| list_holds(root, keys, key, &items))
            }
            "minLength" => string(value).is_none_or(|text| text.chars().count() as u64 >= expected.as_u64().unwrap()),
            "maxLength" => string(value).is_none_or(|text| text.chars().count() as u64 <= expected.as_u64().unwrap()),
            "pattern" => {
                let regex = regex::Regex::new(expected.as_str().unwrap()).unwrap();
                string(value).is_none_or(|text| regex.is_match(&text))
            }
            "minimum" => number(value).is_none_or(|number| number >= expected.as_f64().unwrap()),
            "maximum" => number(value).is_none_or(|number| number <= expected.as_f64().unwrap()),
            "exclusiveMinimum" => number(value).is_none_or(|number| number > expected.as_f64().unwrap()),
            "exclusiveMaximum" => number(value).is_none_or(|number| number < expected.as_f64().unwrap()),
            "multipleOf" => number(value).is_none() || is_multiple(value.get(), &expected.to_string()),
            other => panic!("the validator does not know `{other}`"),
        };
        if !holds {
            return Err(format!("{value} breaks `{key}`: {expected}"));
        }
    }
    Ok(())
}

fn object_holds(
    root: &Value,
    keys: &serde_json::Map<String, Value>,
    key: &str,
    object: &BTreeMap<String, Box<RawValue>>,
) -> bool {
    let expected = &keys[key];
    match key {
        "required" => expected.as_array().unwrap().iter().all(|name| object.contains_key(name.as_str().unwrap())),
        "properties" => object
            .iter()
            .all(|(name, value)| expected.get(name).is_none_or(|schema| validate(root, schema, value).is_ok())),
        "patternProperties" => expected.as_object().unwrap().iter().all(|(pattern, schema)| {
            let regex = regex::Regex::new(pattern).unwrap();
            object.iter().all(|(name, value)| !regex.is_match(name) || validate(root, schema, value).is_ok())
        }),
        _ => object.iter().all(|(name, value)| {
            let is_named = keys.get("properties").is_some_and(|named| named.get(name).is_some());
            let patterns = keys.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
            let is_matched =
                patterns.map(|(pattern, _)| pattern).any(|pattern| regex::Regex::new(pattern).unwrap().is_match(name));
            is_named || is_matched || validate(root, expected, value).is_ok()
        }),
    }
}

fn list_holds(root: &Value, keys: &serde_json::Map<String, Value>, key: &str, items: &[Box<RawValue>]) -> bool {
    let expected = &keys[key];
    let prefix = keys.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
    match key {
        "minItems" => items.len() as u64 >= expected.as_u64().unwrap(),
        "maxItems" => items.len() as u64 <= expected.as_u64().unwrap(),
        "prefixItems" => {
            items.iter().zip(expected.as_array().unwrap()).all(|(item, schema)| validate(root, schema, item).is_ok())
        }
        _ => items.iter().skip(prefix).all(|item| validate(root, expected, item).is_ok()),
    }
}

fn object(value: &RawValue) -> Option<BTreeMap<String, Box<RawValue>>> {
    value.get().starts_with('{').then(|| serde_json::from_str(value.get()).unwrap())
}

fn list(value: &RawValue) -> Option<Vec<Box<RawValue>>> {
    value.get().starts_with('[').then(|| serde_json::from_str(value.get()).unwrap())
}

fn string(value: &RawValue) -> Option<String> {
    value.get().starts_with('"').then(|| serde_json::from_str(value.get()).unwrap())
}

fn number(value: &RawValue) -> Option<f64> {
    let is_number = value.get().starts_with(|first: char| first == '-' || first.is_ascii_digit());
    is_number.then(|| value.get().parse().unwrap())
}

fn is_type(value: &RawValue, expected: &Value) -> bool {
    match expected.as_str().unwrap() {
        "null" => value.get() == "null",
        "boolean" => matches!(value.get(), "true" | "false"),
        "integer" => number(value).is_some() && !value.get().contains(['.', 'e', 'E']),
        "number" => number(value).is_some(),
        "string" => value.get().starts_with('"'),
        "array" => value.get().starts_with('['),
        "object" => value.get().starts_with('{'),
        other => panic!("{other}"),
    }
}

fn equals(expected: &Value, value: &RawValue) -> bool {
    serde_json::from_str::<Value>(value.get()).is_ok_and(|value| value == *expected)
}

/// Returns whether a decimal number without an exponent is a multiple of another number, which has at most 9 digits.
fn is_multiple(value: &str, of: &str) -> bool {
    let parts = |text: &str| {
        let (whole, fraction) =
            text.trim_start_matches('-').split_once('.').unwrap_or((text.trim_start_matches('-'), ""));
        (whole.to_owned(), fraction.trim_end_matches('0').to_owned())
    };
    let ((whole, fraction), (of_whole, of_fraction)) = (parts(value), parts(of));
    let decimals = fraction.len().max(of_fraction.len());
    let digits = |whole: &str, fraction: &str| format!("{whole}{fraction:0<decimals$}");
    let divisor: u64 = digits(&of_whole, &of_fraction).parse().unwrap();
    let digit = |digit: char| u64::from(digit.to_digit(10).expect("no exponent"));
    digits(&whole, &fraction).chars().fold(0, |rest, next| (rest * 10 + digit(next)) % divisor) == 0
}

#[test]
fn validator_knows_right_from_wrong() {
    use serde_json::json;
    let point = json!({"type": "object", "properties": {"x": {"type": "integer", "multipleOf": 3}},
        "required": ["x"], "additionalProperties": {"type": "string", "maxLength": 2}});
    for (schema, right, wrong) in [
        (&point, r#"{"x": -9, "a": "é世"}"#, r#"{"x": 4}"#),
        (&point, r#"{"x": 0}"#, r#"{"a": ""}"#),
        (&point, r#"{"x": 300}"#, r#"{"x": 3, "a": "abc"}"#),
        (&json!({"anyOf": [{"const": 1}, {"enum": ["a", null]}]}), "null", "2"),
        (&json!({"multipleOf": 0.25}), "1.750", "1.7"),
        (&json!({"prefixItems": [{"type": "null"}], "items": {"maximum": 3}, "minItems": 2}), "[null, 3]", "[null, 4]"),
        (&json!({"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "^b"}}}), "\"bc\"", "\"cb\""),
        (&json!({"type": ["number", "null"]}), "1e999", "\"1\""),
    ] {
        assert_eq!(check(schema, right), Ok(()));
        assert!(check(schema, wrong).is_err(), "{schema}: {wrong}");
    }
    assert!(check(&json!({}), "{\"a\":").is_err());
}
