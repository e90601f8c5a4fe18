//! The built-in tests of Jinja2, as in `value is number`.
//!
//! Source: `jinja2.tests`.

use crate::args::Args;
use crate::ast::{BinaryOp, CompareOp};
use crate::error::{Error, Result};
use crate::iter::Iter;
use crate::key::{equal, is_same};
use crate::methods::{is_lower, is_upper};
use crate::object::Object;
use crate::ops;
use crate::repr::to_str;
use crate::value::Value;
use crate::vm::Vm;

const NAMES: &[&str] = &[
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether a test of this name exists.
pub(crate) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

impl Vm<'_> {
    /// Evaluates `value is name(args)`.
    #[inline(never)]
    pub(crate) fn call_test(&mut self, name: &str, value: &Value, args: Args) -> Result<bool> {
        let comparison = match name {
            "==" | "eq" | "equalto" => Some(CompareOp::Eq),
            "!=" | "ne" => Some(CompareOp::Ne),
            ">" | "gt" | "greaterthan" => Some(CompareOp::Gt),
            ">=" | "ge" => Some(CompareOp::Ge),
            "<" | "lt" | "lessthan" => Some(CompareOp::Lt),
            "<=" | "le" => Some(CompareOp::Le),
            _ => None,
        };
        if let Some(operator) = comparison {
            let other = args.one(name)?;
            return self.compare(operator, value, &other);
        }
        match name {
            "in" => {
                let [seq] = args.bind("in", ["seq"], 1)?;
                return ops::contains(self, &seq.unwrap_or(Value::None), value);
            }
            "sameas" => {
                let [other] = args.bind("sameas", ["other"], 1)?;
                return Ok(is_same(value, &other.unwrap_or(Value::None)));
            }
            "divisibleby" => {
                let [number] = args.bind("divisibleby", ["num"], 1)?;
                return self.remainder_is(value, &number.unwrap_or(Value::None), 0);
            }
            _ => args.none(name)?,
        }
        Ok(match name {
            "odd" => self.remainder_is(value, &Value::Int(2), 1)?,
            "even" => self.remainder_is(value, &Value::Int(2), 0)?,
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "filter" => named(value, crate::filters::exists)?,
            "test" => named(value, exists)?,
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "integer" => matches!(value, Value::Int(_) | Value::Big(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_)),
            "lower" | "upper" => {
                let text = to_str(value, &mut self.budget)?;
                self.budget.scan(text.len())?;
                if name == "lower" { is_lower(&text) } else { is_upper(&text) }
            }
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            // Python checks for `__len__` and `__getitem__`, and `Undefined` defines both.
            "sequence" => matches!(
                value,
                Value::Str(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range(_)
                    | Value::Undefined(_)
            ),
            "iterable" => match value {
                Value::Object(object) => matches!(**object, Object::Iter { .. } | Object::Loop(_)),
                value => Iter::new(value).is_ok(),
            },
            "callable" => match value {
                Value::Object(object) => object.is_callable(),
                // `Undefined` defines `__call__`, although calling it fails.
                value => value.is_undefined(),
            },
            "escaped" => value.is_safe(),
            _ => return Err(Error::value(format!("No test named '{name}'."))),
        })
    }

    /// Whether the remainder of `value` divided by `divisor` is `rest`.
    fn remainder_is(&mut self, value: &Value, divisor: &Value, rest: i64) -> Result<bool> {
        let found = ops::binary(self, BinaryOp::Mod, value, divisor)?;
        Ok(equal(&found, &Value::Int(rest)))
    }
}

fn named(value: &Value, exists: fn(&str) -> bool) -> Result<bool> {
    crate::key::check_hashable(value)?;
    Ok(value.as_str().is_some_and(exists))
}
