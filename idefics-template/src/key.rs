//! Equality, ordering and hashing with Python's semantics: `1 == 1.0 == True`, and lists compare item by item.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use indexmap::Equivalent;
use num_bigint::BigInt;
use num_traits::{FromPrimitive, ToPrimitive};

use crate::error::{Error, Result};
use crate::object::Object;
use crate::value::{Dict, Seq, Value, View};

/// A hashable value, used as the key of a dict.
#[derive(Debug, Clone)]
pub(crate) struct Key(pub(crate) Value);

impl Key {
    /// Creates a key, or fails if the value is not hashable.
    pub(crate) fn new(value: Value) -> Result<Self> {
        check_hashable(&value)?;
        Ok(Self(value))
    }

    pub(crate) fn str(text: impl Into<std::sync::Arc<str>>) -> Self {
        Self(Value::str(text))
    }
}

/// Checks that a value is hashable. Lists, dicts, slices and the views of keys and items are not.
pub(crate) fn check_hashable(value: &Value) -> Result<()> {
    match value {
        Value::List(_) | Value::Dict(_) | Value::View(View::Keys | View::Items, _) | Value::Slice(_) => {
            Err(Error::type_error(format!("unhashable type: '{}'", value.type_name())))
        }
        Value::Tuple(seq) => seq.items.iter().try_for_each(check_hashable),
        _ => Ok(()),
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Key {}

impl Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.as_str() == Some(self)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            // Equals the hash of `str`, so that a dict can be queried with a `&str`.
            Value::Str(text) => text.text.hash(state),
            Value::Bool(value) => i64::from(*value).hash(state),
            Value::Int(number) => number.hash(state),
            Value::Big(number) => number.to_f64().unwrap_or(0.0).to_bits().hash(state),
            Value::Float(number) => match number.to_i64().filter(|whole| *whole as f64 == *number) {
                Some(whole) => whole.hash(state),
                None => number.to_bits().hash(state),
            },
            Value::Tuple(seq) => seq.items.iter().for_each(|item| Self(item.clone()).hash(state)),
            Value::Object(object) => match &**object {
                // Two equal methods or functions may be different objects, so their addresses are not hashed.
                Object::Method { name, .. } => name.hash(state),
                Object::Function(function) => std::mem::discriminant(function).hash(state),
                _ => Rc::as_ptr(object).hash(state),
            },
            other => std::mem::discriminant(other).hash(state),
        }
    }
}

/// Whether two values are equal by Python's `==`.
pub(crate) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(left), Value::Str(right)) => left.text == right.text,
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => equal_items(left, right),
        (Value::Dict(left), Value::Dict(right)) => Rc::ptr_eq(left, right) || equal_dicts(left, right),
        (Value::View(view, left), Value::View(other, right)) => {
            view == other
                && match view {
                    View::Keys => {
                        left.map.len() == right.map.len() && left.map.keys().all(|key| right.map.contains_key(key))
                    }
                    View::Items => equal_dicts(left, right),
                    View::Values => false,
                }
        }
        (Value::Range(left), Value::Range(right)) => {
            left.length == right.length
                && (left.length == 0 || (left.start == right.start && (left.length == 1 || left.step == right.step)))
        }
        (Value::Slice(left), Value::Slice(right)) => {
            left.iter().zip(right.iter()).all(|(left, right)| equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => left.equals(right),
        _ => compare_numbers(left, right) == Some(Some(Ordering::Equal)),
    }
}

/// Whether two items are the same object or equal. Python compares items this way, so a list that contains NaN equals
/// itself.
fn same_or_equal(left: &Value, right: &Value) -> bool {
    is_same(left, right) || equal(left, right)
}

fn equal_items(left: &Seq, right: &Seq) -> bool {
    std::ptr::eq(left, right)
        || (left.items.len() == right.items.len()
            && left.items.iter().zip(&right.items).all(|(left, right)| same_or_equal(left, right)))
}

fn equal_dicts(left: &Dict, right: &Dict) -> bool {
    left.map.len() == right.map.len()
        && left.map.iter().all(|(key, value)| right.map.get(key).is_some_and(|other| same_or_equal(value, other)))
}

/// Whether two values are the same object by Python's `is`.
pub(crate) fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Undefined(left), Value::Undefined(right)) => Rc::ptr_eq(left, right),
        (Value::None, Value::None) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Int(left), Value::Int(right)) => left == right,
        (Value::Str(left), Value::Str(right)) => left.safe == right.safe && left.text == right.text,
        (Value::Float(left), Value::Float(right)) => left == right,
        (Value::List(left), Value::List(right)) => Rc::ptr_eq(left, right),
        (Value::Tuple(left), Value::Tuple(right)) => {
            Rc::ptr_eq(left, right) || (left.items.is_empty() && right.items.is_empty())
        }
        (Value::Dict(left), Value::Dict(right)) => Rc::ptr_eq(left, right),
        (Value::Object(left), Value::Object(right)) => Rc::ptr_eq(left, right),
        _ => false,
    }
}

/// Returns the order of two numbers: `Some(None)` if either is NaN, `None` if either is not a number.
fn compare_numbers(left: &Value, right: &Value) -> Option<Option<Ordering>> {
    let whole = |value: &Value| match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Int(number) => Some(*number),
        _ => None,
    };
    if let (Some(left), Some(right)) = (whole(left), whole(right)) {
        return Some(Some(left.cmp(&right)));
    }
    if let (Value::Float(left), Value::Float(right)) = (left, right) {
        return Some(left.partial_cmp(right));
    }
    if let Value::Float(left) = left {
        return Some(compare_float(*left, &to_bigint(right)?));
    }
    if let Value::Float(right) = right {
        return Some(compare_float(*right, &to_bigint(left)?).map(Ordering::reverse));
    }
    Some(Some(to_bigint(left)?.cmp(&to_bigint(right)?)))
}

pub(crate) fn to_bigint(value: &Value) -> Option<BigInt> {
    match value {
        Value::Bool(value) => Some(BigInt::from(i64::from(*value))),
        Value::Int(number) => Some(BigInt::from(*number)),
        Value::Big(number) => Some((**number).clone()),
        _ => None,
    }
}

fn compare_float(left: f64, right: &BigInt) -> Option<Ordering> {
    if left.is_nan() {
        return None;
    }
    match BigInt::from_f64(left.floor()) {
        Some(floor) => Some(floor.cmp(right).then(match left > left.floor() {
            true => Ordering::Greater,
            false => Ordering::Equal,
        })),
        None => Some(if left > 0.0 { Ordering::Greater } else { Ordering::Less }),
    }
}

/// Returns the order of two values, or `None` if they are unordered, like NaN. `operator` is used in the error message.
pub(crate) fn order(left: &Value, right: &Value, operator: &str) -> Result<Option<Ordering>> {
    left.defined()?;
    right.defined()?;
    match (left, right) {
        (Value::Str(left), Value::Str(right)) => Ok(Some(left.text.cmp(&right.text))),
        (Value::List(left), Value::List(right)) | (Value::Tuple(left), Value::Tuple(right)) => {
            for (left, right) in left.items.iter().zip(&right.items) {
                if !same_or_equal(left, right) {
                    return order(left, right, operator);
                }
            }
            Ok(Some(left.items.len().cmp(&right.items.len())))
        }
        (Value::View(View::Keys, left), Value::View(View::Keys, right)) => {
            let within = |small: &Dict, large: &Dict| small.map.keys().all(|key| large.map.contains_key(key));
            Ok(match (within(left, right), within(right, left)) {
                (true, true) => Some(Ordering::Equal),
                (true, false) => Some(Ordering::Less),
                (false, true) => Some(Ordering::Greater),
                (false, false) => None,
            })
        }
        _ => compare_numbers(left, right).ok_or_else(|| {
            let types = format!("'{}' and '{}'", left.type_name(), right.type_name());
            Error::type_error(format!("'{operator}' not supported between instances of {types}"))
        }),
    }
}
