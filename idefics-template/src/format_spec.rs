//! Format specifications, as in `'{:>8.2f}'.format(x)`.
//!
//! Source: `Python/formatter_unicode.c`.

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive};

use crate::budget::Budget;
use crate::digits::{exponent, fixed, float_repr, general, non_finite, precise};
use crate::error::{Error, Result};
use crate::key::to_bigint;
use crate::number::to_float;
use crate::repr::{int_digits, to_str};
use crate::value::Value;

/// A parsed specification: `[[fill]align][sign][z][#][0][width][grouping][.precision][kind]`.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: Option<char>,
    no_negative_zero: bool,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Formats a value as Python's `format` does.
pub(crate) fn format_value(value: &Value, spec: &str, budget: &mut Budget) -> Result<String> {
    budget.scan(spec.len())?;
    if spec.is_empty() {
        return Ok(to_str(value, budget)?.to_string());
    }
    let name = value.type_name();
    let is_plain = matches!(value, Value::Str(_) | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_));
    if !is_plain {
        return Err(Error::type_error(format!("unsupported format string passed to {name}.__format__")));
    }
    let spec = Spec::parse(spec, name)?;
    budget.build(spec.width.max(spec.precision.unwrap_or(0)))?;
    let unknown = |kind: char| Error::value(format!("Unknown format code '{kind}' for object of type '{name}'"));
    let text = match (value, spec.kind) {
        (Value::Str(text), None | Some('s')) => spec.string(&text.text)?,
        (Value::Str(_), Some(kind)) => return Err(unknown(kind)),
        (Value::Float(number), kind) => match kind {
            None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%') => spec.float(*number),
            Some(kind) => return Err(unknown(kind)),
        },
        // Bools are formatted as integers. Only the empty specification, handled above, writes `True` or `False`.
        (value, kind) => match kind {
            Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => spec.float(to_float(value)?.unwrap_or_default()),
            None | Some('b' | 'c' | 'd' | 'n' | 'o' | 'x' | 'X') => {
                spec.integer(&to_bigint(value).unwrap_or_default())?
            }
            Some(kind) => return Err(unknown(kind)),
        },
    };
    budget.build(text.len())?;
    Ok(text)
}

impl Spec {
    fn parse(text: &str, name: &str) -> Result<Self> {
        let invalid = || Error::value("Invalid format specifier");
        let mut spec = Self {
            fill: ' ',
            align: None,
            sign: None,
            no_negative_zero: false,
            alternate: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        };
        let is_align = |character: &char| matches!(character, '<' | '>' | '=' | '^');
        let mut rest = text;
        let mut characters = rest.chars();
        let (first, second) = (characters.next(), characters.next());
        let mut fill_given = false;
        if let (Some(fill), Some(align)) = (first, second.filter(is_align)) {
            (spec.fill, spec.align, fill_given) = (fill, Some(align), true);
            rest = characters.as_str();
        } else if let Some(align) = first.filter(is_align) {
            spec.align = Some(align);
            rest = &rest[1..];
        }
        let take = |rest: &mut &str, flag: char| match rest.strip_prefix(flag) {
            Some(after) => {
                *rest = after;
                true
            }
            None => false,
        };
        if let Some(sign) = rest.chars().next().filter(|sign| matches!(sign, '+' | '-' | ' ')) {
            spec.sign = Some(sign);
            rest = &rest[1..];
        }
        spec.no_negative_zero = take(&mut rest, 'z');
        spec.alternate = take(&mut rest, '#');
        if !fill_given && take(&mut rest, '0') {
            spec.fill = '0';
            if spec.align.is_none() && name != "str" && name != "Markup" {
                spec.align = Some('=');
            }
        }
        spec.width = number(&mut rest)?.unwrap_or(0);
        for separator in [',', '_'] {
            if take(&mut rest, separator) {
                if spec.grouping.is_some() {
                    return Err(Error::value("Cannot specify both ',' and '_'."));
                }
                spec.grouping = Some(separator);
            }
        }
        if take(&mut rest, '.') {
            spec.precision =
                Some(number(&mut rest)?.ok_or_else(|| Error::value("Format specifier missing precision"))?);
        }
        let mut characters = rest.chars();
        spec.kind = characters.next();
        if characters.next().is_some() {
            return Err(invalid());
        }
        if let (Some(separator), Some(kind)) = (spec.grouping, spec.kind) {
            let allowed = match kind {
                'd' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => true,
                'b' | 'o' | 'x' | 'X' => separator == '_',
                _ => false,
            };
            if !allowed {
                return Err(Error::value(format!("Cannot specify '{separator}' with '{kind}'.")));
            }
        }
        Ok(spec)
    }

    fn string(&self, text: &str) -> Result<String> {
        if self.sign.is_some() {
            return Err(Error::value("Sign not allowed in string format specifier"));
        }
        if self.alternate || self.no_negative_zero || self.grouping.is_some() || self.align == Some('=') {
            return Err(Error::value("'#', 'z', ',', '_' and '=' are not allowed in string format specifiers"));
        }
        let end = self.precision.and_then(|precision| text.char_indices().nth(precision)).map(|(end, _)| end);
        Ok(self.pad("", text[..end.unwrap_or(text.len())].to_owned(), '<'))
    }

    fn integer(&self, number: &BigInt) -> Result<String> {
        if self.precision.is_some() {
            return Err(Error::value("Precision not allowed in integer format specifier"));
        }
        if self.no_negative_zero {
            return Err(Error::value("Negative zero coercion (z) not allowed in format specifier with integer"));
        }
        let magnitude = number.abs();
        let (prefix, digits) = match self.kind {
            Some('c') => {
                if self.sign.is_some() || self.alternate {
                    return Err(Error::value("Sign and alternate form not allowed with integer format specifier 'c'"));
                }
                let character = number.to_u32().and_then(char::from_u32);
                let character = character.ok_or_else(|| Error::value("%c arg not in range(0x110000)"))?;
                return Ok(self.pad("", character.to_string(), '<'));
            }
            Some('b') => ("0b", magnitude.to_str_radix(2)),
            Some('o') => ("0o", magnitude.to_str_radix(8)),
            Some('x') => ("0x", magnitude.to_str_radix(16)),
            Some('X') => ("0X", magnitude.to_str_radix(16).to_uppercase()),
            _ => ("", int_digits(&magnitude)?),
        };
        let every = if matches!(self.kind, Some('b' | 'o' | 'x' | 'X')) { 4 } else { 3 };
        let prefix = if self.alternate { prefix } else { "" };
        Ok(self.number(number.is_negative(), prefix, &digits, "", every))
    }

    fn float(&self, number: f64) -> String {
        let (number, percent) = if self.kind == Some('%') { (number * 100.0, "%") } else { (number, "") };
        let magnitude = number.abs();
        let precision = self.precision.unwrap_or(6);
        let body = match (non_finite(magnitude), self.kind.map(|kind| kind.to_ascii_lowercase())) {
            (Some(text), _) => text.to_owned(),
            (None, Some('f' | '%')) => fixed(magnitude, precision, self.alternate),
            (None, Some('e')) => exponent(magnitude, precision, self.alternate),
            (None, Some(_)) => general(magnitude, precision, self.alternate),
            (None, None) => match self.precision {
                Some(precision) => precise(magnitude, precision),
                None => float_repr(magnitude),
            },
        };
        let body = match self.kind.is_some_and(|kind| kind.is_ascii_uppercase()) {
            true => body.to_uppercase(),
            false => body,
        };
        let is_zero = !body
            .split(['e', 'E'])
            .next()
            .unwrap_or_default()
            .contains(|digit: char| matches!(digit, '1'..='9' | 'a' | 'n'));
        let negative = number.is_sign_negative() && !number.is_nan() && !(self.no_negative_zero && is_zero);
        let end = body.find(|character: char| !character.is_ascii_digit()).unwrap_or(body.len());
        self.number(negative, "", &body[..end], &format!("{}{percent}", &body[end..]), 3)
    }

    /// Joins sign, prefix, grouped digits and `rest` (the fraction, exponent or percent sign), and pads the result.
    /// Groups have `every` digits.
    fn number(&self, negative: bool, prefix: &str, digits: &str, rest: &str, every: usize) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            (false, _) => "",
        };
        let head = format!("{sign}{prefix}");
        // Zeros that pad the number are grouped together with its digits.
        let zero_width = match self.fill == '0' && self.align == Some('=') {
            true => self.width.saturating_sub(head.len() + rest.len()),
            false => 0,
        };
        let body = match self.grouping {
            Some(separator) => group(digits, separator, every, zero_width),
            None => digits.to_owned(),
        };
        self.pad(&head, format!("{body}{rest}"), '>')
    }

    fn pad(&self, head: &str, body: String, default: char) -> String {
        let missing = self.width.saturating_sub(head.chars().count() + body.chars().count());
        let fill = |count: usize| std::iter::repeat_n(self.fill, count).collect::<String>();
        match self.align.unwrap_or(default) {
            '<' => format!("{head}{body}{}", fill(missing)),
            '^' => format!("{}{head}{body}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{head}{}{body}", fill(missing)),
            _ => format!("{}{head}{body}", fill(missing)),
        }
    }
}

fn number(rest: &mut &str) -> Result<Option<usize>> {
    let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    if end == 0 {
        return Ok(None);
    }
    let number = rest[..end].parse::<i32>().map_err(|_| Error::value("Too many decimal digits in format string"))?;
    *rest = &rest[end..];
    Ok(Some(number as usize))
}

/// Inserts a separator between groups of `every` digits, and pads with zeros to `width` characters.
fn group(digits: &str, separator: char, every: usize, width: usize) -> String {
    if digits.is_empty() {
        return String::new();
    }
    let mut reversed = String::new();
    let mut count = 0;
    let mut source = digits.chars().rev();
    loop {
        let next = match source.next() {
            Some(digit) => digit,
            None if reversed.len() < width => '0',
            None => break,
        };
        if count > 0 && count % every == 0 {
            reversed.push(separator);
        }
        reversed.push(next);
        count += 1;
    }
    reversed.chars().rev().collect()
}
