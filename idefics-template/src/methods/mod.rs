//! Methods of Python's built-in types.

pub(crate) mod case;
mod classes;
mod find;
mod split;
pub(crate) mod text;
mod translate;

pub(crate) use classes::{is_lower, is_upper};

use std::rc::Rc;

use crate::args::Args;
use crate::ast::BinaryOp;
use crate::error::{Error, Result};
use crate::key::{check_hashable, equal, is_same, to_bigint};
use crate::object::Object;
use crate::ops;
use crate::value::{Dict, Seq, Value, View};
use crate::vm::Vm;

impl Vm<'_> {
    /// Calls `value.name(args)`. The caller must have checked with `has_method` that the method exists.
    #[inline(never)]
    pub(crate) fn call_method(&mut self, value: &Value, name: &str, args: Args) -> Result<Value> {
        self.budget.step()?;
        match value {
            Value::Str(text) => {
                let given: usize = args.positional.iter().filter_map(Value::as_str).map(str::len).sum();
                self.budget.scan(text.text.len().saturating_add(given))?;
                text::call(self, text, name, args)
            }
            Value::List(seq) | Value::Tuple(seq) => sequence(self, value, seq, name, args),
            Value::Dict(dict) => mapping(self, dict, name, args),
            Value::View(view, dict) => is_disjoint(self, *view, dict, args.one(name)?),
            Value::Range(range) => {
                let item = args.one(name)?;
                let found = item.as_index().and_then(|number| ops::position(range, number));
                match (name, found) {
                    ("count", found) => Ok(Value::Int(i64::from(found.is_some()))),
                    (_, Some(index)) => Ok(Value::usize(index)),
                    (_, None) => Err(Error::value("the item is not in the range")),
                }
            }
            Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => number(self, value, name, args),
            Value::Object(object) => object_method(self, object, name, args),
            other => Err(Error::type_error(format!("'{}' object has no method '{name}'", other.type_name()))),
        }
    }
}

fn sequence(vm: &mut Vm, value: &Value, seq: &Rc<Seq>, name: &str, args: Args) -> Result<Value> {
    match name {
        "copy" => {
            args.none("copy")?;
            vm.budget.build(24 * seq.items.len())?;
            Value::list(seq.items.clone(), &mut vm.budget)
        }
        "count" => {
            let item = args.one("count")?;
            vm.budget.scan(24 * seq.items.len() + seq.weight / 8)?;
            let count = seq.items.iter().filter(|other| is_same(other, &item) || equal(other, &item)).count();
            Ok(Value::usize(count))
        }
        _ => {
            let [item, start, stop] = args.bind("index", ["/value", "/start", "/stop"], 1)?;
            let item = item.unwrap_or(Value::None);
            let bound = |value: Option<Value>, default: i64| match value {
                None => Ok(default),
                Some(value) => {
                    let index = value.as_index().ok_or_else(|| {
                        Error::type_error("slice indices must be integers or have an __index__ method")
                    })?;
                    Ok(if index < 0 { index.saturating_add(seq.items.len() as i64).max(0) } else { index })
                }
            };
            let (start, stop) = (bound(start, 0)?, bound(stop, i64::MAX)?);
            vm.budget.scan(24 * seq.items.len() + seq.weight / 8)?;
            let found = seq.items.iter().enumerate().find(|(index, other)| {
                let index = *index as i64;
                index >= start && index < stop && (is_same(other, &item) || equal(other, &item))
            });
            match found {
                Some((index, _)) => Ok(Value::usize(index)),
                None => Err(Error::value(format!("the item is not in the {}", value.type_name()))),
            }
        }
    }
}

fn mapping(vm: &mut Vm, dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    match name {
        "get" => {
            let [key, default] = args.bind("get", ["/key", "/default"], 1)?;
            let key = key.unwrap_or(Value::None);
            check_hashable(&key)?;
            vm.budget.scan(key.weight() / 8)?;
            Ok(dict.get(&key).cloned().or(default).unwrap_or(Value::None))
        }
        "fromkeys" => vm.dict_from_keys(args),
        name => {
            args.none(name)?;
            Ok(match name {
                "items" => Value::View(View::Items, dict.clone()),
                "keys" => Value::View(View::Keys, dict.clone()),
                "values" => Value::View(View::Values, dict.clone()),
                _ => {
                    vm.budget.build(64 * dict.map.len())?;
                    Value::dict(dict.map.clone(), &mut vm.budget)?
                }
            })
        }
    }
}

fn is_disjoint(vm: &mut Vm, view: View, dict: &Rc<Dict>, other: Value) -> Result<Value> {
    let view = Value::View(view, dict.clone());
    let mut iter = crate::iter::Iter::new(&other)?;
    while let Some(item) = iter.next(vm)? {
        vm.budget.step()?;
        if ops::contains(vm, &view, &item)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn number(vm: &mut Vm, value: &Value, name: &str, args: Args) -> Result<Value> {
    args.none(name)?;
    let whole = to_bigint(value);
    Ok(match (name, value) {
        ("conjugate", Value::Float(_)) => value.clone(),
        ("is_integer", Value::Float(number)) => Value::Bool(number.is_finite() && number.fract() == 0.0),
        ("hex", Value::Float(number)) => vm.string(float_hex(*number))?,
        ("as_integer_ratio", Value::Float(number)) => {
            if !number.is_finite() {
                return Err(Error::value("cannot convert NaN or infinity to integer ratio"));
            }
            let (numerator, denominator) = ratio(*number);
            Value::tuple(vec![Value::int(numerator), Value::int(denominator)], &mut vm.budget)?
        }
        ("as_integer_ratio", _) => {
            let parts = vec![Value::int(whole.unwrap_or_default()), Value::Int(1)];
            Value::tuple(parts, &mut vm.budget)?
        }
        ("bit_length", _) => Value::int(whole.map_or(0, |number| number.bits())),
        ("bit_count", _) => {
            let ones = whole.map_or(0, |number| number.magnitude().count_ones());
            Value::int(ones)
        }
        _ => ops::binary(vm, BinaryOp::Add, value, &Value::Int(0))?,
    })
}

/// Converts a finite float to a fraction in lowest terms.
fn ratio(number: f64) -> (num_bigint::BigInt, num_bigint::BigInt) {
    use num_bigint::BigInt;
    let mut mantissa = number;
    let mut shift = 0u32;
    while mantissa.fract() != 0.0 {
        mantissa *= 2.0;
        shift += 1;
    }
    let numerator = num_traits::FromPrimitive::from_f64(mantissa).unwrap_or_else(|| BigInt::from(0));
    (numerator, BigInt::from(1) << shift)
}

/// Formats a float in hexadecimal, as Python's `float.hex` does.
fn float_hex(number: f64) -> String {
    if let Some(text) = crate::digits::non_finite(number) {
        return text.to_owned();
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    if number == 0.0 {
        return format!("{sign}0x0.0p+0");
    }
    let bits = number.to_bits();
    let (exponent, fraction) = (((bits >> 52) & 0x7ff) as i64, bits & ((1 << 52) - 1));
    match exponent {
        0 => format!("{sign}0x0.{fraction:013x}p-1022"),
        exponent => format!("{sign}0x1.{fraction:013x}p{:+}", exponent - 1023),
    }
}

fn object_method(vm: &mut Vm, object: &Rc<Object>, name: &str, args: Args) -> Result<Value> {
    match (&**object, name) {
        (Object::Cycler { items, position }, "next") => {
            args.none("next")?;
            let current = position.get();
            position.set((current + 1) % items.length()?.max(1));
            vm.get_item(items, &Value::usize(current))
        }
        (Object::Cycler { position, .. }, _) => {
            args.none("reset")?;
            position.set(0);
            Ok(Value::None)
        }
        (Object::Loop(state), "changed") => {
            if let Some((name, _)) = args.named.first() {
                return Err(Error::type_error(format!("changed() got an unexpected keyword argument '{name}'")));
            }
            let mut state = state
                .try_borrow_mut()
                .map_err(|_| Error::value("the loop cannot be used while it computes its next item"))?;
            vm.budget.scan(args.positional.iter().map(Value::weight).fold(0, usize::saturating_add) / 8)?;
            let same = state.last_changed.as_ref().is_some_and(|last| {
                last.len() == args.positional.len()
                    && last.iter().zip(&args.positional).all(|(last, value)| is_same(last, value) || equal(last, value))
            });
            if !same {
                state.last_changed = Some(args.positional);
            }
            Ok(Value::Bool(!same))
        }
        (Object::Loop(state), _) => {
            if !args.named.is_empty() || args.positional.is_empty() {
                return Err(Error::type_error("no items for cycling given"));
            }
            let yielded = state
                .try_borrow()
                .map_err(|_| Error::value("the loop cannot be used while it computes its next item"))?
                .yielded;
            let index = yielded.saturating_sub(1) % args.positional.len();
            Ok(args.positional.get(index).cloned().unwrap_or(Value::None))
        }
        _ => vm.dict_from_keys(args),
    }
}
