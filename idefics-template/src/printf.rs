//! The `%` operator for strings.
//!
//! Source: `unicode_format` in `Objects/unicodeobject.c`.

use num_bigint::BigInt;
use num_traits::Signed;

use crate::digits::{exponent, fixed, general, non_finite};
use crate::error::{Error, Result};
use crate::html::escape;
use crate::key::to_bigint;
use crate::number::{to_float, truncate};
use crate::repr::{ascii, int_digits, repr, to_str};
use crate::value::{Text, Value};
use crate::vm::Vm;

/// Evaluates `format % values`. If the format is escaped, the values are escaped too.
pub(crate) fn printf(vm: &mut Vm, format: &Text, values: &Value) -> Result<Value> {
    vm.budget.scan(format.text.len())?;
    let single = [values.clone()];
    let items: &[Value] = match values {
        Value::Tuple(seq) => &seq.items,
        _ => &single,
    };
    let mut printer = Printer { vm, values, items, used: 0, mapped: None, safe: format.safe, out: String::new() };
    printer.run(&format.text)?;
    let all_used = printer.used >= items.len() || is_mapping(values);
    let out = printer.out;
    if !all_used {
        return Err(Error::type_error("not all arguments converted during string formatting"));
    }
    vm.budget.build(out.len())?;
    Ok(Value::text(out, format.safe))
}

/// Whether Python treats the values as a mapping: everything that can be subscripted, except tuples and strings.
fn is_mapping(values: &Value) -> bool {
    matches!(values, Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_))
}

struct Printer<'a, 'vm> {
    vm: &'a mut Vm<'vm>,
    values: &'a Value,
    items: &'a [Value],
    used: usize,
    /// The value of the last `%(key)`, which is used instead of `items`. `Some(None)` once this value has been used.
    mapped: Option<Option<Value>>,
    safe: bool,
    out: String,
}

#[derive(Default)]
struct Flags {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
}

impl Printer<'_, '_> {
    fn run(&mut self, format: &str) -> Result<()> {
        let mut rest = format;
        while let Some(found) = rest.find('%') {
            self.out += &rest[..found];
            rest = self.directive(&rest[found + 1..])?;
            self.vm.budget.step()?;
            self.vm.budget.check_value(self.out.len())?;
        }
        self.out += rest;
        Ok(())
    }

    fn argument(&mut self) -> Result<Value> {
        let value = match &mut self.mapped {
            Some(mapped) => mapped.take(),
            None => {
                self.used += 1;
                self.items.get(self.used - 1).cloned()
            }
        };
        value.ok_or_else(|| Error::type_error("not enough arguments for format string"))
    }

    /// Writes one directive and returns the text after it.
    fn directive<'t>(&mut self, text: &'t str) -> Result<&'t str> {
        let incomplete = || Error::value("incomplete format");
        if let Some(rest) = text.strip_prefix('%') {
            self.out.push('%');
            return Ok(rest);
        }
        let mut rest = text;
        if let Some(after) = rest.strip_prefix('(') {
            let mut open = 1;
            let end = after.char_indices().find(|(_, character)| {
                open += match character {
                    '(' => 1,
                    ')' => -1,
                    _ => 0,
                };
                open == 0
            });
            let (end, _) = end.ok_or_else(|| Error::value("incomplete format key"))?;
            if !is_mapping(self.values) {
                return Err(Error::type_error("format requires a mapping"));
            }
            let key = Value::str(&after[..end]);
            let value = match self.values {
                Value::Dict(dict) => {
                    dict.get(&key).cloned().ok_or_else(|| Error::value(format!("missing key '{}'", &after[..end])))?
                }
                Value::Undefined(undefined) => return Err(undefined.error()),
                other => return Err(Error::type_error(format!("{} indices must be integers", other.type_name()))),
            };
            self.mapped = Some(Some(value));
            rest = &after[end + 1..];
        }
        let mut flags = Flags::default();
        while let Some(flag) = rest.chars().next().filter(|flag| "-+ #0".contains(*flag)) {
            match flag {
                '-' => flags.left = true,
                '+' => flags.plus = true,
                ' ' => flags.space = true,
                '#' => flags.alternate = true,
                _ => flags.zero = true,
            }
            rest = &rest[1..];
        }
        let mut width = 0;
        if let Some(after) = rest.strip_prefix('*') {
            let given = self.argument()?.as_index().ok_or_else(|| Error::type_error("* wants int"))?;
            flags.left |= given < 0;
            width = given.unsigned_abs() as usize;
            rest = after;
        } else {
            width = take_number(&mut rest)?.unwrap_or(width);
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            precision = Some(match rest.strip_prefix('*') {
                Some(after) => {
                    rest = after;
                    let given = self.argument()?.as_index().ok_or_else(|| Error::type_error("* wants int"))?;
                    given.max(0) as usize
                }
                None => take_number(&mut rest)?.unwrap_or(0),
            });
        }
        rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
        let kind = rest.chars().next().ok_or_else(incomplete)?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            return Err(Error::value("unsupported format character '%'"));
        }
        self.vm.budget.build(width.max(precision.unwrap_or(0)))?;
        let value = self.argument()?;
        let body = match kind {
            's' | 'r' | 'a' => self.text(kind, &value, precision)?,
            'c' => character(&value)?,
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let (negative, prefix, body) = number(kind, &value, precision, flags.alternate)?;
                let sign = match negative {
                    true => "-",
                    false if flags.plus => "+",
                    false if flags.space => " ",
                    false => "",
                };
                let length = sign.len() + prefix.len() + body.len();
                let zeros = if flags.zero && !flags.left { width.saturating_sub(length) } else { 0 };
                format!("{sign}{prefix}{}{body}", "0".repeat(zeros))
            }
            _ => return Err(Error::value(format!("unsupported format character '{kind}'"))),
        };
        let padding = " ".repeat(width.saturating_sub(body.chars().count()));
        match flags.left {
            true => self.out.extend([body, padding]),
            false => self.out.extend([padding, body]),
        }
        Ok(rest)
    }

    fn text(&mut self, kind: char, value: &Value, precision: Option<usize>) -> Result<String> {
        let mut text = match kind {
            's' => to_str(value, &mut self.vm.budget)?.to_string(),
            'r' => repr(value, &mut self.vm.budget)?,
            _ => ascii(&repr(value, &mut self.vm.budget)?),
        };
        if self.safe && !(kind == 's' && value.is_safe()) {
            text = escape(&text, &mut self.vm.budget)?;
        }
        if let Some((end, _)) = precision.and_then(|precision| text.char_indices().nth(precision)) {
            text.truncate(end);
        }
        self.vm.budget.build(text.len())?;
        Ok(text)
    }
}

/// Consumes the decimal digits at the start of the text, if any.
fn take_number(rest: &mut &str) -> Result<Option<usize>> {
    let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    if end == 0 {
        return Ok(None);
    }
    let number = rest[..end].parse::<i32>().map_err(|_| Error::value("width too big"))?;
    *rest = &rest[end..];
    Ok(Some(number as usize))
}

fn character(value: &Value) -> Result<String> {
    let found = match value {
        Value::Str(text) => {
            let mut characters = text.text.chars();
            characters.next().filter(|_| characters.next().is_none())
        }
        value => match value.as_index() {
            Some(code) => match u32::try_from(code).ok().and_then(char::from_u32) {
                Some(character) => Some(character),
                None => return Err(Error::value("%c arg not in range(0x110000)")),
            },
            None => None,
        },
    };
    found.map(String::from).ok_or_else(|| Error::type_error("%c requires int or char"))
}

/// Formats a number. Returns whether it is negative, its prefix, and its digits.
fn number(kind: char, value: &Value, precision: Option<usize>, alternate: bool) -> Result<(bool, String, String)> {
    let wrong =
        |wanted: &str| Error::type_error(format!("%{kind} format: {wanted} is required, not {}", value.type_name()));
    if matches!(kind, 'e' | 'E' | 'f' | 'F' | 'g' | 'G') {
        value.defined()?;
        let number = to_float(value)?
            .ok_or_else(|| Error::type_error(format!("must be real number, not {}", value.type_name())))?;
        let precision = precision.unwrap_or(6);
        let negative = number.is_sign_negative() && !number.is_nan();
        let body = match (non_finite(number.abs()), kind.to_ascii_lowercase()) {
            (Some(text), _) => text.to_owned(),
            (None, 'f') => fixed(number.abs(), precision, alternate),
            (None, 'e') => exponent(number.abs(), precision, alternate),
            (None, _) => general(number.abs(), precision, alternate),
        };
        let body = if kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        return Ok((negative, String::new(), body));
    }
    let whole: BigInt = match (to_bigint(value), value) {
        (Some(whole), _) => whole,
        (None, Value::Float(number)) if matches!(kind, 'd' | 'i' | 'u') => {
            to_bigint(&truncate(*number)?).ok_or_else(|| wrong("a real number"))?
        }
        _ if matches!(kind, 'd' | 'i' | 'u') => return Err(wrong("a real number")),
        _ => return Err(wrong("an integer")),
    };
    let magnitude = whole.abs();
    let (prefix, digits) = match kind {
        'o' => ("0o", magnitude.to_str_radix(8)),
        'x' => ("0x", magnitude.to_str_radix(16)),
        'X' => ("0X", magnitude.to_str_radix(16).to_uppercase()),
        _ => ("", int_digits(&magnitude)?),
    };
    let zeros = "0".repeat(precision.unwrap_or(0).saturating_sub(digits.len()));
    let prefix = if alternate { prefix } else { "" };
    Ok((whole.is_negative(), prefix.to_owned(), format!("{zeros}{digits}")))
}
