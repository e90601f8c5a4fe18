//! Number filters.

use std::borrow::Cow;

use crate::args::Args;
use crate::ast::BinaryOp;
use crate::digits::fixed;
use crate::error::{Error, ErrorKind, Result};
use crate::key::to_bigint;
use crate::number::{absolute, arithmetic, to_float, truncate};
use crate::unicode::{decimal, is_space};
use crate::value::Value;
use crate::vm::Vm;

/// Calls a number filter. Returns `None` if there is no number filter of this name.
pub(super) fn call(vm: &mut Vm, name: &str, value: &Value, args: &Args) -> Result<Option<Value>> {
    let args = || args.clone();
    Ok(Some(match name {
        "abs" => {
            args().none("abs")?;
            absolute(value.defined()?)?
        }
        "int" => {
            let [default, base] = args().bind("int", ["default", "base"], 0)?;
            int(value, base)?.unwrap_or_else(|| default.unwrap_or(Value::Int(0)))
        }
        "float" => {
            let [default] = args().bind("float", ["default"], 0)?;
            match float(value)? {
                Some(number) => Value::Float(number),
                None => default.unwrap_or(Value::Float(0.0)),
            }
        }
        "round" => {
            let [precision, method] = args().bind("round", ["precision", "method"], 0)?;
            round(value, precision, method)?
        }
        "filesizeformat" => {
            let [binary] = args().bind("filesizeformat", ["binary"], 0)?;
            let text = file_size(value, binary.is_some_and(|binary| binary.is_true()))?;
            vm.string(text)?
        }
        _ => return Ok(None),
    }))
}

/// Converts a value to a float. Returns `None` where Python raises `TypeError` or `ValueError`.
fn float(value: &Value) -> Result<Option<f64>> {
    match value.defined()? {
        Value::Str(text) => Ok(parse_float(&text.text)),
        value => to_float(value),
    }
}

/// Parses a string as Python's `float` does.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text = &*ascii_digits(text.trim_matches(is_space));
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let word = unsigned.to_ascii_lowercase();
    if matches!(&*word, "inf" | "infinity" | "nan") {
        return text.to_ascii_lowercase().parse().ok();
    }
    let allowed = unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && unsigned
            .chars()
            .all(|character| character.is_ascii_digit() || matches!(character, '.' | 'e' | 'E' | '+' | '-' | '_'));
    if !allowed {
        return None;
    }
    without_underscores(text)?.parse().ok()
}

/// Replaces the decimal digits of all scripts by ASCII digits.
fn ascii_digits(text: &str) -> Cow<'_, str> {
    match text.is_ascii() {
        true => text.into(),
        false => text.chars().map(|character| decimal(character).unwrap_or(character)).collect(),
    }
}

/// Removes `_` between digits. Returns `None` if a `_` is not between two digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let digit =
            |index: Option<usize>| index.and_then(|index| bytes.get(index)).is_some_and(u8::is_ascii_alphanumeric);
        if *byte == b'_' && !(digit(index.checked_sub(1)) && digit(index.checked_add(1))) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// Parses a string as Python's `int` does. Base 0 detects the prefixes `0b`, `0o` and `0x`.
fn parse_int(text: &str, base: u32) -> Option<Value> {
    let text = &*ascii_digits(text.trim_matches(is_space));
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let prefix = |radix: u32| match radix {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let (radix, rest) = match base {
        0 => match [2, 8, 16].into_iter().find(|radix| lower.starts_with(prefix(*radix))) {
            Some(radix) => (radix, &digits[2..]),
            None if digits.starts_with('0') && digits.bytes().any(|byte| byte.is_ascii_digit() && byte != b'0') => {
                return None;
            }
            None => (10, digits),
        },
        base if !prefix(base).is_empty() && lower.starts_with(prefix(base)) => (base, &digits[2..]),
        base => (base, digits),
    };
    let after_prefix = rest.len() < digits.len();
    let rest = if after_prefix { rest.strip_prefix('_').unwrap_or(rest) } else { rest };
    if rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    let digits = without_underscores(rest)?;
    if digits.len() > 4300 {
        return None;
    }
    let number = num_bigint::BigInt::parse_bytes(digits.as_bytes(), radix)?;
    Some(Value::int(if negative { -number } else { number }))
}

/// Evaluates the filter `int`. Source: `do_int`.
fn int(value: &Value, base: Option<Value>) -> Result<Option<Value>> {
    let value = value.defined()?;
    let caught = |result: Result<Value>| match result {
        Err(error) if error.kind() == ErrorKind::Value => Ok(None),
        result => result.map(Some),
    };
    match value {
        Value::Str(text) => {
            let base = match base {
                None => Some(10),
                Some(base) => base
                    .as_index()
                    .and_then(|base| u32::try_from(base).ok())
                    .filter(|base| *base == 0 || (2..=36).contains(base)),
            };
            match base.and_then(|base| parse_int(&text.text, base)) {
                Some(number) => Ok(Some(number)),
                None => parse_float(&text.text).map_or(Ok(None), |number| caught(truncate(number))),
            }
        }
        Value::Float(number) if number.is_infinite() => Err(Error::value("cannot convert float infinity to integer")),
        Value::Float(number) => caught(truncate(*number)),
        value => Ok(to_bigint(value).map(Value::int)),
    }
}

/// Evaluates the filter `round`. Source: `do_round`.
fn round(value: &Value, precision: Option<Value>, method: Option<Value>) -> Result<Value> {
    let method = method.unwrap_or_else(|| Value::str("common"));
    let precision = precision.unwrap_or(Value::Int(0));
    let Some(method @ ("common" | "ceil" | "floor")) = method.as_str() else {
        return Err(Error::value("method must be common, ceil or floor"));
    };
    value.defined()?;
    let wrong = || Error::type_error(format!("type {} doesn't define __round__ method", value.type_name()));
    if method == "common" {
        return match (value, &precision) {
            (Value::Float(number), Value::None) => truncate(round_half_even(*number)),
            (Value::Float(number), precision) => round_float(*number, precision.index()?).map(Value::Float),
            (value, Value::None) => to_bigint(value).map(Value::int).ok_or_else(wrong),
            (value, precision) => round_int(&to_bigint(value).ok_or_else(wrong)?, precision.index()?),
        };
    }
    let scale = arithmetic(BinaryOp::Pow, &Value::Int(10), &precision)?.ok_or_else(wrong)?;
    let scaled = arithmetic(BinaryOp::Mul, value, &scale)?.ok_or_else(wrong)?;
    let whole = match (&scaled, method) {
        (Value::Float(number), "ceil") => truncate(number.ceil())?,
        (Value::Float(number), _) => truncate(number.floor())?,
        (scaled, _) => scaled.clone(),
    };
    arithmetic(BinaryOp::Div, &whole, &scale)?.ok_or_else(wrong)
}

fn round_half_even(number: f64) -> f64 {
    number.round_ties_even()
}

/// Rounds a float as Python's `round` does: correctly in decimal, with ties to the even digit.
fn round_float(number: f64, precision: i64) -> Result<f64> {
    if !number.is_finite() || number == 0.0 {
        return Ok(number);
    }
    if precision > 330 {
        return Ok(number);
    }
    if precision < -310 {
        return Ok(0f64.copysign(number));
    }
    let rounded = match usize::try_from(precision) {
        Ok(precision) => fixed(number.abs(), precision, false).parse::<f64>(),
        Err(_) => {
            // Rounds the exact decimal digits of the integer part.
            let digits = fixed(number.abs().trunc(), 0, false);
            let fraction = number.abs().fract() != 0.0;
            round_digits(&digits, precision.unsigned_abs() as usize, fraction).parse::<f64>()
        }
    };
    let rounded = rounded.unwrap_or(0.0).copysign(number);
    match rounded.is_finite() {
        true => Ok(rounded),
        false => Err(Error::value("rounded value too large to represent")),
    }
}

/// Rounds the last `places` digits to zeros, with ties to the even digit. `more` is set if non-zero digits follow.
fn round_digits(digits: &str, places: usize, more: bool) -> String {
    let digits = format!("{}{digits}", "0".repeat((places + 1).saturating_sub(digits.len())));
    let (head, tail) = digits.split_at(digits.len() - places);
    let half = format!("5{}", "0".repeat(places - 1));
    let odd = head.ends_with(['1', '3', '5', '7', '9']);
    let up = tail > &*half || (tail == half && (more || odd));
    let mut head: Vec<u8> = head.bytes().collect();
    if up {
        let mut index = head.len();
        loop {
            let Some(previous) = index.checked_sub(1) else {
                head.insert(0, b'1');
                break;
            };
            index = previous;
            if head[index] == b'9' {
                head[index] = b'0';
            } else {
                head[index] += 1;
                break;
            }
        }
    }
    let head = String::from_utf8(head).unwrap_or_default();
    format!("{head}{}", "0".repeat(places))
}

fn round_int(number: &num_bigint::BigInt, precision: i64) -> Result<Value> {
    use num_traits::Signed;
    if precision >= 0 {
        return Ok(Value::int(number.clone()));
    }
    let places = usize::try_from(precision.unsigned_abs()).unwrap_or(usize::MAX);
    let digits = number.abs().to_string();
    if places > digits.len() {
        return Ok(Value::Int(0));
    }
    let rounded = round_digits(&digits, places, false);
    let rounded = num_bigint::BigInt::parse_bytes(rounded.as_bytes(), 10).unwrap_or_default();
    Ok(Value::int(if number.is_negative() { -rounded } else { rounded }))
}

/// Evaluates the filter `filesizeformat`. Source: `do_filesizeformat`.
fn file_size(value: &Value, binary: bool) -> Result<String> {
    let bytes = match value.defined()? {
        Value::Str(text) => parse_float(&text.text).ok_or_else(|| Error::value("could not convert string to float"))?,
        value => to_float(value)?.ok_or_else(|| {
            Error::type_error(format!(
                "float() argument must be a string or a real number, not '{}'",
                value.type_name()
            ))
        })?,
    };
    let (base, infix) = if binary { (1024f64, "i") } else { (1000f64, "") };
    if bytes == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if bytes < base {
        let whole = crate::repr::to_str(&truncate(bytes)?, &mut crate::budget::Budget::new(crate::Limits::default()))?;
        return Ok(format!("{whole} Bytes"));
    }
    let prefixes =
        if binary { ["K", "M", "G", "T", "P", "E", "Z", "Y"] } else { ["k", "M", "G", "T", "P", "E", "Z", "Y"] };
    let mut text = String::new();
    for (index, prefix) in prefixes.iter().enumerate() {
        let unit = base.powi(index as i32 + 2);
        let amount = base * bytes / unit;
        let amount = crate::digits::non_finite(amount).map_or_else(|| fixed(amount, 1, false), str::to_owned);
        text = format!("{amount} {prefix}{infix}B");
        if bytes < unit {
            break;
        }
    }
    Ok(text)
}
