//! Formats floats as Python does.

/// Formats a float as Python's `repr` does: the shortest decimal that parses to the same number.
pub(crate) fn float_repr(number: f64) -> String {
    if let Some(text) = non_finite(number) {
        return text.to_owned();
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let (digits, exponent) = shortest(number.abs());
    format!("{sign}{}", layout(&digits, exponent, -4..16, true))
}

/// Returns `inf`, `-inf` or `nan`, or `None` for finite numbers.
pub(crate) fn non_finite(number: f64) -> Option<&'static str> {
    match number {
        _ if number.is_nan() => Some("nan"),
        f64::INFINITY => Some("inf"),
        f64::NEG_INFINITY => Some("-inf"),
        _ => None,
    }
}

/// Returns the digits of the shortest decimal that parses to the same number, and the decimal exponent of the first
/// digit. The number must not be negative.
fn shortest(number: f64) -> (String, i32) {
    let (digits, exponent) = split(&format!("{number:e}"));
    // If two shortest decimals are equally close, Python chooses the one with an even last digit.
    let even = split(&format!("{number:.*e}", digits.len() - 1));
    match even.0 != digits && layout(&even.0, even.1, -4..16, true).parse() == Ok(number) {
        true => even,
        false => (digits, exponent),
    }
}

fn split(text: &str) -> (String, i32) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (mantissa.replace('.', ""), exponent.parse().unwrap_or(0))
}

/// Writes digits in positional notation if the exponent is in `positional`, otherwise in scientific notation. With
/// `point`, whole numbers in positional notation end in `.0`.
fn layout(digits: &str, exponent: i32, positional: std::ops::Range<i32>, point: bool) -> String {
    if !positional.contains(&exponent) {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        return format!("{first}{dot}{rest}e{}", exponent_text(exponent));
    }
    if exponent < 0 {
        return format!("0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1));
    }
    let whole = exponent as usize + 1;
    if digits.len() > whole {
        return format!("{}.{}", &digits[..whole], &digits[whole..]);
    }
    let zeros = "0".repeat(whole - digits.len());
    format!("{digits}{zeros}{}", if point { ".0" } else { "" })
}

fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{:02}", exponent.unsigned_abs())
}

/// Maximum number of computed digits after the decimal point. An `f64` has at most 1074; further digits are zeros.
const MAX_DIGITS: usize = 1100;

/// Formats a non-negative number with code `f`. `alternate` (`#`) keeps the decimal point at precision 0.
pub(crate) fn fixed(number: f64, precision: usize, alternate: bool) -> String {
    let mut text = format!("{number:.*}", precision.min(MAX_DIGITS));
    text.extend(std::iter::repeat_n('0', precision.saturating_sub(MAX_DIGITS)));
    if alternate && precision == 0 {
        text.push('.');
    }
    text
}

/// Formats a non-negative number with code `e`. `alternate` (`#`) keeps the decimal point at precision 0.
pub(crate) fn exponent(number: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{number:.*e}", precision.min(MAX_DIGITS));
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let zeros = "0".repeat(precision.saturating_sub(MAX_DIGITS));
    let point = if alternate && precision == 0 { "." } else { "" };
    format!("{mantissa}{zeros}{point}e{}", exponent_text(power.parse().unwrap_or(0)))
}

/// Formats a non-negative number with code `g`. `alternate` (`#`) keeps trailing zeros.
pub(crate) fn general(number: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let (digits, power) = rounded(number, precision);
    if alternate {
        return match power >= -4 && power < precision.min(i32::MAX as usize) as i32 {
            true => fixed(number, (precision as i32 - 1 - power) as usize, true),
            false => exponent(number, precision - 1, true),
        };
    }
    layout(&digits, power, -4..precision.min(1 << 20) as i32, false)
}

/// Formats a float with a precision but without a format code: as with code `g`, but with at least one digit after the
/// decimal point.
pub(crate) fn precise(number: f64, precision: usize) -> String {
    let precision = precision.max(1);
    let (digits, power) = rounded(number, precision);
    // The digit after the decimal point counts towards the precision.
    layout(&digits, power, -4..(precision.min(1 << 20) as i32 - i32::from(precision > 0)).max(1), true)
}

/// Rounds to `precision` significant digits. Returns the digits without trailing zeros, and the decimal exponent of the
/// first digit.
fn rounded(number: f64, precision: usize) -> (String, i32) {
    let (digits, power) = split(&format!("{number:.*e}", (precision - 1).min(MAX_DIGITS)));
    let kept = digits.trim_end_matches('0');
    (if kept.is_empty() { "0".to_owned() } else { kept.to_owned() }, power)
}
