//! Checks a JSON schema before the grammar library reads it. The checks limit the library's work, and reject what the
//! library would ignore.

use std::collections::HashSet;

use serde_json::Value;

use super::lark::check_regex;
use super::{GrammarError, GrammarKind};

/// Maximum number of optional properties of all objects together.
const MAX_OPTIONAL: usize = 500;

/// Maximum nesting of a schema. The library recurses over the schema.
const MAX_DEPTH: usize = 128;

/// Largest allowed common multiple of the values of `multipleOf`, in units of their last decimal. The library builds an
/// automaton with that many states, and no limit stops it.
const MAX_MULTIPLE: u64 = 10_000;

/// Maximum number of decimals of `multipleOf`.
const MAX_DECIMALS: u32 = 4;

/// Keys that combine several schemas for the same value, so that their `multipleOf` values are combined too.
const COMBINING: [&str; 5] = ["allOf", "anyOf", "oneOf", "$ref", "patternProperties"];

/// Checks a schema, and returns it as the object that is passed to the grammar library.
pub(super) fn check(schema: Value) -> Result<Value, GrammarError> {
    check_depth(&schema)?;
    check_optional_properties(&schema)?;
    let found = match schema {
        Value::Object(_) => return check_keys(&schema).map(|()| schema),
        Value::Bool(true) => return Ok(Value::Object(serde_json::Map::new())),
        Value::Bool(false) => return Err(GrammarError::AllowsNothing),
        Value::Null => "null",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
    };
    Err(GrammarError::NotASchema { found })
}

/// Calls `each` for a JSON value and all values inside it. The arguments are the value's key, if an object contains the
/// value; the value; and its depth.
fn visit<'v>(
    root: &'v Value,
    mut each: impl FnMut(Option<&'v str>, &'v Value, usize) -> Result<(), GrammarError>,
) -> Result<(), GrammarError> {
    let mut left: Vec<(Option<&str>, &Value, usize)> = vec![(None, root, 1)];
    while let Some((key, value, depth)) = left.pop() {
        each(key, value, depth)?;
        match value {
            Value::Object(object) => {
                left.extend(object.iter().map(|(key, value)| (Some(key.as_str()), value, depth + 1)))
            }
            Value::Array(values) => left.extend(values.iter().map(|value| (None, value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

fn check_depth(schema: &Value) -> Result<(), GrammarError> {
    visit(schema, |_, _, depth| match depth <= MAX_DEPTH {
        true => Ok(()),
        false => Err(GrammarError::TooDeep { limit: MAX_DEPTH }),
    })
}

/// Checks the number of optional properties. The library allows any subset of them. With about 1000 optional properties
/// or more, the library reaches a limit of its own after seconds of work.
fn check_optional_properties(schema: &Value) -> Result<(), GrammarError> {
    let mut n_optional = 0;
    visit(schema, |_, value, _| {
        if let Some(properties) = value.get("properties").and_then(Value::as_object) {
            let required = value.get("required").and_then(Value::as_array).into_iter().flatten();
            let required: HashSet<&str> = required.filter_map(Value::as_str).collect();
            n_optional += properties.keys().filter(|key| !required.contains(key.as_str())).count();
        }
        match n_optional <= MAX_OPTIONAL {
            true => Ok(()),
            false => {
                let reason = format!("it has more than {MAX_OPTIONAL} optional properties");
                Err(GrammarError::TooComplex { what: GrammarKind::JsonSchema, reason })
            }
        }
    })
}

/// Checks the keys of all objects. This includes objects that are data, such as the values of `enum`, because a `$ref`
/// may point to them.
fn check_keys(schema: &Value) -> Result<(), GrammarError> {
    if schema.get("x-guidance").is_some() {
        return Err(GrammarError::Guidance);
    }
    let mut multiples = Vec::new();
    let mut combines = false;
    visit(schema, |key, value, _| {
        combines |= key.is_some_and(|key| COMBINING.contains(&key));
        match (key, value) {
            (Some("multipleOf"), Value::Number(number)) => {
                let value = number.as_f64().unwrap_or(f64::INFINITY);
                multiples.push(Decimal::new(value).ok_or(GrammarError::MultipleOf { value })?);
            }
            (Some("pattern"), Value::String(pattern)) => check_regex(pattern)?,
            (Some("patternProperties"), Value::Object(patterns)) => {
                patterns.keys().try_for_each(|pattern| check_regex(pattern))?;
            }
            (Some("$ref"), Value::String(reference)) if !reference.starts_with('#') => {
                return Err(GrammarError::RemoteReference { reference: reference.clone() });
            }
            _ => {}
        }
        Ok(())
    })?;
    if combines { check_common_multiple(&multiples) } else { Ok(()) }
}

fn check_common_multiple(multiples: &[Decimal]) -> Result<(), GrammarError> {
    let decimals = multiples.iter().map(|multiple| multiple.decimals).max().unwrap_or(0);
    let mut common = 1;
    for multiple in multiples {
        common = lcm(common, multiple.digits * 10_u64.pow(decimals - multiple.decimals));
        if common > MAX_MULTIPLE {
            return Err(GrammarError::MultiplesTogether { limit: MAX_MULTIPLE });
        }
    }
    Ok(())
}

/// A positive decimal number `digits · 10^-decimals`, with as few decimals as possible.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decimal {
    digits: u64,
    decimals: u32,
}

impl Decimal {
    /// Returns `None` if the number is not positive or exceeds the limits.
    fn new(value: f64) -> Option<Self> {
        let limit = MAX_MULTIPLE as f64;
        if !(value > 0.0 && value <= limit) {
            return None;
        }
        let text = value.to_string(); // the shortest decimal number that is read as this value, without an exponent
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let decimals = u32::try_from(fraction.len()).ok().filter(|&decimals| decimals <= MAX_DECIMALS)?;
        let digits = format!("{whole}{fraction}").parse().ok().filter(|&digits| digits <= MAX_MULTIPLE)?;
        Some(Self { digits, decimals })
    }
}

fn lcm(left: u64, right: u64) -> u64 {
    let (mut a, mut b) = (left, right);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    left / a * right
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn multiples_are_bounded_alone_and_together() {
        for (value, accepted) in [
            (1.0, true),
            (0.01, true),
            (0.0001, true),
            (0.07, true),
            (10_000.0, true),
            (10_001.0, false),
            (1_234_567.0, false),
            (1000.5, false),
            (0.000_01, false),
            (0.0, false),
            (-2.0, false),
            (1e300, false),
        ] {
            let checked = check(json!({"type": "number", "multipleOf": value}));
            assert_eq!(checked.is_ok(), accepted, "{value}: {checked:?}");
        }
        let properties = json!({"a": {"multipleOf": 97}, "b": {"multipleOf": 89}, "c": {"multipleOf": 83}});
        assert!(check(json!({"properties": properties})).is_ok(), "they are never combined");
        let together = check(json!({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 83}]}));
        assert!(matches!(together, Err(GrammarError::MultiplesTogether { .. })), "{together:?}");
        let decimals = check(json!({"allOf": [{"multipleOf": 97}, {"multipleOf": 0.001}]}));
        assert!(matches!(decimals, Err(GrammarError::MultiplesTogether { .. })), "{decimals:?}");
        assert!(check(json!({"allOf": [{"multipleOf": 4}, {"multipleOf": 0.5}]})).is_ok());
        let hidden = json!({"$ref": "#/default", "default": {"multipleOf": 1_234_567}});
        assert!(matches!(check(hidden), Err(GrammarError::MultipleOf { .. })));
    }

    #[test]
    fn keys_outside_the_limits_are_named() {
        let message = |schema: Value| check(schema).unwrap_err().to_string();
        assert!(message(json!({"x-guidance": {}})).contains("x-guidance"));
        assert!(message(json!({"items": {"$ref": "https://example.com/a.json"}})).contains("example.com"));
        assert!(message(json!({"pattern": "a\\"})).contains("backslash"));
        assert!(message(json!({"patternProperties": {"b\\\\\\": true}})).contains("backslash"));
        assert!(message(json!(null)).contains("null"));
        assert!(message(json!(false)).contains("no value"));
        assert_eq!(check(json!(true)).unwrap(), json!({}));
        // A property may have any of these names.
        let names = json!({"multipleOf": {}, "pattern": {}, "$ref": {}, "x-guidance": {}});
        assert!(check(json!({"properties": names})).is_ok());
        assert!(check(json!({"pattern": "a\\\\"})).is_ok());
    }

    #[test]
    fn deep_schema_is_rejected_before_any_recursion() {
        let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({"not": inner}));
        assert!(check(nested(MAX_DEPTH)).is_ok());
        assert!(matches!(check(nested(MAX_DEPTH + 1)), Err(GrammarError::TooDeep { .. })));
    }
}
