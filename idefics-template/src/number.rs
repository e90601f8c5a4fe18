//! Arithmetic with Python's semantics: integers of arbitrary size, and floats.

use std::sync::Arc;

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{FromPrimitive, Signed, ToPrimitive, Zero};

use crate::ast::BinaryOp;
use crate::budget::MAX_INT_BITS;
use crate::error::{Error, Result};
use crate::key::to_bigint;
use crate::value::Value;

/// An operand of an arithmetic operation.
enum Number {
    Int(i64),
    Big(Arc<BigInt>),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    Some(match value {
        Value::Bool(value) => Number::Int(i64::from(*value)),
        Value::Int(number) => Number::Int(*number),
        Value::Big(number) => Number::Big(number.clone()),
        Value::Float(number) => Number::Float(*number),
        _ => return None,
    })
}

/// Converts a number to the nearest float. Returns `None` if the value is not a number.
pub(crate) fn to_float(value: &Value) -> Result<Option<f64>> {
    Ok(Some(match number(value) {
        None => return Ok(None),
        Some(Number::Int(number)) => number as f64,
        Some(Number::Float(number)) => number,
        Some(Number::Big(number)) => match number.to_f64() {
            Some(float) if float.is_finite() => float,
            _ => return Err(Error::value("int too large to convert to float")),
        },
    }))
}

/// Converts a float to an integer, rounding towards zero.
pub(crate) fn truncate(number: f64) -> Result<Value> {
    match BigInt::from_f64(number.trunc()) {
        Some(number) => Ok(Value::int(number)),
        None if number.is_nan() => Err(Error::value("cannot convert float NaN to integer")),
        None => Err(Error::value("cannot convert float infinity to integer")),
    }
}

pub(crate) fn is_number(value: &Value) -> bool {
    number(value).is_some()
}

/// Applies an operator to two numbers, as floats if either is a float. Returns `None` if one of them is not a number.
pub(crate) fn arithmetic(operator: BinaryOp, left: &Value, right: &Value) -> Result<Option<Value>> {
    let (Some(left_number), Some(right_number)) = (number(left), number(right)) else { return Ok(None) };
    let result = match (&left_number, &right_number) {
        (Number::Int(left), Number::Int(right)) => int_op(operator, *left, *right),
        _ => None,
    };
    if let Some(result) = result {
        return Ok(Some(result));
    }
    let is_float = matches!(left_number, Number::Float(_)) || matches!(right_number, Number::Float(_));
    if is_float {
        let (Some(left), Some(right)) = (to_float(left)?, to_float(right)?) else { return Ok(None) };
        return float_op(operator, left, right).map(Some);
    }
    let (Some(left), Some(right)) = (to_bigint(left), to_bigint(right)) else { return Ok(None) };
    bigint_op(operator, &left, &right).map(Some)
}

/// Applies an operator to two integers if the result fits an `i64`. Returns `None` on overflow, division by zero, and
/// for `/` and `**`.
fn int_op(operator: BinaryOp, left: i64, right: i64) -> Option<Value> {
    let floor = |left: i64, right: i64| {
        let quotient = left.checked_div(right)?;
        Some(quotient - i64::from(left % right != 0 && (left < 0) != (right < 0)))
    };
    let result = match operator {
        BinaryOp::Add => left.checked_add(right),
        BinaryOp::Sub => left.checked_sub(right),
        BinaryOp::Mul => left.checked_mul(right),
        BinaryOp::FloorDiv => floor(left, right),
        BinaryOp::Mod => floor(left, right).map(|quotient| left - quotient * right),
        BinaryOp::Div | BinaryOp::Pow => None,
    };
    result.map(Value::Int)
}

fn check_bits(bits: u64) -> Result<()> {
    match bits > MAX_INT_BITS {
        true => Err(Error::limit(format!("{MAX_INT_BITS} bits in one integer"))),
        false => Ok(()),
    }
}

fn bigint_op(operator: BinaryOp, left: &BigInt, right: &BigInt) -> Result<Value> {
    let zero = matches!(operator, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod) && right.is_zero();
    if zero {
        return Err(Error::value("division by zero"));
    }
    let result = match operator {
        BinaryOp::Add => left + right,
        BinaryOp::Sub => left - right,
        BinaryOp::Mul => {
            check_bits(left.bits() + right.bits())?;
            left * right
        }
        BinaryOp::FloorDiv => left.div_floor(right),
        BinaryOp::Mod => left.mod_floor(right),
        BinaryOp::Div => return divide(left, right),
        BinaryOp::Pow if right.is_negative() => {
            let float = |number: &BigInt| to_float(&Value::int(number.clone())).map(Option::unwrap_or_default);
            return float_op(operator, float(left)?, float(right)?);
        }
        BinaryOp::Pow => match right.to_u32() {
            _ if left.abs() <= BigInt::from(1) => match (left.is_negative(), right.is_even()) {
                (true, true) => left.abs(),
                _ if right.is_zero() => BigInt::from(1),
                _ => left.clone(),
            },
            Some(power) => {
                check_bits(left.bits().saturating_mul(u64::from(power)))?;
                left.pow(power)
            }
            None => return Err(Error::limit(format!("{MAX_INT_BITS} bits in one integer"))),
        },
    };
    check_bits(result.bits())?;
    Ok(Value::int(result))
}

/// Divides two integers. Returns the quotient as a correctly rounded float.
fn divide(left: &BigInt, right: &BigInt) -> Result<Value> {
    const EXACT: u64 = 53;
    if left.bits() <= EXACT && right.bits() <= EXACT {
        return Ok(Value::Float(left.to_f64().unwrap_or_default() / right.to_f64().unwrap_or_default()));
    }
    // Shifts so that the quotient has at least 64 bits. A sticky bit below them records a non-zero remainder.
    let shift = (right.bits() as i64 - left.bits() as i64 + 66).max(0) as u64;
    let (quotient, rest) = (left.abs() << shift).div_rem(&right.abs());
    // Keeps 66 bits, so that the conversion to a float does not overflow.
    let extra = quotient.bits().saturating_sub(66);
    let kept: BigInt = &quotient >> extra;
    let is_exact = rest.is_zero() && (&kept << extra) == quotient;
    let sticky: BigInt = (kept << 1u8) + u8::from(!is_exact);
    let exponent = (extra as i64 - shift as i64 - 1) as i32;
    let (half, other) = (exponent / 2, exponent - exponent / 2);
    let magnitude = sticky.to_f64().unwrap_or(f64::INFINITY) * 2f64.powi(half) * 2f64.powi(other);
    let result = if left.is_negative() == right.is_negative() { magnitude } else { -magnitude };
    match result.is_finite() {
        true => Ok(Value::Float(result)),
        false => Err(Error::value("integer division result too large for a float")),
    }
}

fn float_op(operator: BinaryOp, left: f64, right: f64) -> Result<Value> {
    let divides = matches!(operator, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod);
    if divides && right == 0.0 {
        return Err(Error::value("float division by zero"));
    }
    Ok(Value::Float(match operator {
        BinaryOp::Add => left + right,
        BinaryOp::Sub => left - right,
        BinaryOp::Mul => left * right,
        BinaryOp::Div => left / right,
        BinaryOp::FloorDiv => divmod(left, right).0,
        BinaryOp::Mod => divmod(left, right).1,
        BinaryOp::Pow => power(left, right)?,
    }))
}

/// Computes the floored quotient and the remainder of two floats. Source: `_float_div_mod` in `Objects/floatobject.c`.
fn divmod(left: f64, right: f64) -> (f64, f64) {
    let mut rest = left % right;
    let mut quotient = (left - rest) / right;
    if rest != 0.0 {
        if (right < 0.0) != (rest < 0.0) {
            rest += right;
            quotient -= 1.0;
        }
    } else {
        rest = 0f64.copysign(right);
    }
    let floor = if quotient == 0.0 {
        0f64.copysign(left / right)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    };
    (floor, rest)
}

fn power(left: f64, right: f64) -> Result<f64> {
    if left == 0.0 && right < 0.0 {
        return Err(Error::value("0.0 cannot be raised to a negative power"));
    }
    if left < 0.0 && left.is_finite() && right.is_finite() && right.fract() != 0.0 {
        return Err(Error::value("the result is a complex number; complex numbers are not supported"));
    }
    let result = left.powf(right);
    match result.is_infinite() && left.is_finite() && right.is_finite() {
        true => Err(Error::value("numerical result out of range")),
        false => Ok(result),
    }
}

/// Whether a number is printed with a minus sign.
pub(crate) fn is_negative(value: &Value) -> bool {
    match value {
        Value::Int(number) => *number < 0,
        Value::Big(number) => number.is_negative(),
        Value::Float(number) => number.is_sign_negative() && !number.is_nan(),
        _ => false,
    }
}

pub(crate) fn negate(value: &Value) -> Result<Value> {
    match (value, to_bigint(value)) {
        (Value::Float(number), _) => Ok(Value::Float(-number)),
        (_, Some(number)) => Ok(Value::int(-number)),
        _ => Err(Error::type_error(format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

pub(crate) fn absolute(value: &Value) -> Result<Value> {
    match (value, to_bigint(value)) {
        (Value::Float(number), _) => Ok(Value::Float(number.abs())),
        (_, Some(number)) => Ok(Value::int(number.abs())),
        _ => Err(Error::type_error(format!("bad operand type for abs(): '{}'", value.type_name()))),
    }
}
