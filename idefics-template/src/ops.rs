//! Operators on values of all types.

use std::rc::Rc;

use crate::ast::BinaryOp;
use crate::error::{Error, Result};
use crate::html::escape;
use crate::iter::Iter;
use crate::key::{check_hashable, equal, to_bigint};
use crate::number::arithmetic;
use crate::printf::printf;
use crate::value::{Range, Text, Value, View};
use crate::vm::Vm;

#[inline(never)]
pub(crate) fn binary(vm: &mut Vm, operator: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    if let Some(result) = arithmetic(operator, left, right)? {
        return Ok(result);
    }
    if let (BinaryOp::Mod, Value::Str(format)) = (operator, left) {
        return printf(vm, format, right);
    }
    left.defined()?;
    right.defined()?;
    match (operator, left, right) {
        (BinaryOp::Add, Value::Str(left), Value::Str(right)) => add_text(vm, left, right),
        (BinaryOp::Add, Value::List(left), Value::List(right)) => {
            vm.budget.build(left.weight.saturating_add(right.weight))?;
            let items = left.items.iter().chain(&right.items).cloned().collect();
            Value::list(items, &mut vm.budget)
        }
        (BinaryOp::Add, Value::Tuple(left), Value::Tuple(right)) => {
            vm.budget.build(left.weight.saturating_add(right.weight))?;
            let items = left.items.iter().chain(&right.items).cloned().collect();
            Value::tuple(items, &mut vm.budget)
        }
        (BinaryOp::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), _) if right.as_index().is_some() => {
            repeat(vm, left, right)
        }
        (BinaryOp::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_)) if left.as_index().is_some() => {
            repeat(vm, right, left)
        }
        _ => {
            let sign = match operator {
                BinaryOp::Add => "+",
                BinaryOp::Sub => "-",
                BinaryOp::Mul => "*",
                BinaryOp::Div => "/",
                BinaryOp::FloorDiv => "//",
                BinaryOp::Mod => "%",
                BinaryOp::Pow => "**",
            };
            let types = format!("'{}' and '{}'", left.type_name(), right.type_name());
            Err(Error::type_error(format!("unsupported operand type(s) for {sign}: {types}")))
        }
    }
}

/// Concatenates two texts. If one of them is escaped, the other is escaped first.
fn add_text(vm: &mut Vm, left: &Text, right: &Text) -> Result<Value> {
    let safe = left.safe || right.safe;
    vm.budget.build(left.text.len() + right.text.len())?;
    let mut text = String::with_capacity(left.text.len() + right.text.len());
    for part in [left, right] {
        match safe && !part.safe {
            true => text += &escape(&part.text, &mut vm.budget)?,
            false => text += &part.text,
        }
    }
    Ok(Value::text(text, safe))
}

fn repeat(vm: &mut Vm, value: &Value, count: &Value) -> Result<Value> {
    if matches!(count, Value::Big(_)) {
        return Err(Error::value("cannot fit 'int' into an index-sized integer"));
    }
    let count = usize::try_from(count.index()?).unwrap_or(0);
    vm.budget.build(match value {
        // Empty text and empty sequences can be repeated any number of times at no cost.
        Value::Str(text) => text.text.len().saturating_mul(count),
        Value::List(seq) | Value::Tuple(seq) if !seq.items.is_empty() => value.weight().saturating_mul(count),
        _ => 0,
    })?;
    match value {
        Value::Str(text) if text.text.is_empty() => Ok(value.clone()),
        Value::Str(text) => Ok(Value::text(text.text.repeat(count), text.safe)),
        Value::List(seq) if seq.items.is_empty() => Value::list(Vec::new(), &mut vm.budget),
        Value::List(seq) => Value::list(repeated(&seq.items, count), &mut vm.budget),
        Value::Tuple(seq) if !seq.items.is_empty() => Value::tuple(repeated(&seq.items, count), &mut vm.budget),
        _ => Value::tuple(Vec::new(), &mut vm.budget),
    }
}

fn repeated(items: &[Value], count: usize) -> Vec<Value> {
    std::iter::repeat_n(items, count).flatten().cloned().collect()
}

/// Evaluates `+number`. Converts a bool to an integer.
pub(crate) fn positive(value: &Value) -> Result<Value> {
    match value {
        Value::Bool(value) => Ok(Value::Int(i64::from(*value))),
        value => Ok(value.clone()),
    }
}

/// Evaluates Python's `item in container`.
pub(crate) fn contains(vm: &mut Vm, container: &Value, item: &Value) -> Result<bool> {
    let find = |items: &[Value]| items.iter().any(|other| crate::key::is_same(other, item) || equal(other, item));
    match container {
        Value::Str(text) => {
            let Some(part) = item.as_str() else {
                let name = item.type_name();
                return Err(Error::type_error(format!("'in <string>' requires string as left operand, not {name}")));
            };
            vm.budget.scan(text.text.len() + part.len())?;
            Ok(text.text.contains(part))
        }
        Value::List(seq) | Value::Tuple(seq) => {
            vm.budget.scan(8 * seq.items.len() + seq.weight.min(item.weight().saturating_mul(seq.items.len())) / 8)?;
            Ok(find(&seq.items))
        }
        Value::Dict(dict) | Value::View(View::Keys, dict) => {
            check_hashable(item)?;
            vm.budget.scan(item.weight())?;
            Ok(dict.get(item).is_some())
        }
        Value::View(View::Values, dict) => {
            vm.budget.scan(dict.weight)?;
            Ok(dict.map.values().any(|value| equal(value, item)))
        }
        Value::View(View::Items, dict) => match item {
            Value::Tuple(pair) if pair.items.len() == 2 => {
                check_hashable(&pair.items[0])?;
                vm.budget.scan(item.weight())?;
                Ok(dict.get(&pair.items[0]).is_some_and(|value| equal(value, &pair.items[1])))
            }
            _ => Ok(false),
        },
        Value::Range(range) => {
            let number = match item {
                Value::Float(number) if number.fract() == 0.0 && number.abs() < 9e18 => Some(*number as i64),
                item => to_bigint(item).map(|_| item.as_index().unwrap_or_default()),
            };
            Ok(number.is_some_and(|number| position(range, number).is_some()))
        }
        container => {
            if !container.is_undefined() && Iter::new(container).is_err() {
                return Err(Error::type_error(format!("argument of type '{}' is not iterable", container.type_name())));
            }
            let mut iter = Iter::new(container)?;
            while let Some(other) = iter.next(vm)? {
                vm.budget.step()?;
                if equal(&other, item) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Returns the index of a number in a range, or `None` if the range does not contain it.
pub(crate) fn position(range: &Range, number: i64) -> Option<usize> {
    let distance = i128::from(number) - i128::from(range.start);
    let step = i128::from(range.step);
    let index = usize::try_from(distance / step).ok()?;
    (distance % step == 0 && index < range.length).then_some(index)
}

/// Resolves a slice of a sequence of `length` items to the index of the first item, the number of items and the step.
fn slice_bounds(parts: &[Value; 3], length: usize) -> Result<(i64, usize, i64)> {
    let part = |value: &Value| match value {
        Value::None => Ok(None),
        value => match value.as_index() {
            Some(index) => Ok(Some(index)),
            None => Err(Error::type_error("slice indices must be integers or None or have an __index__ method")),
        },
    };
    let step = part(&parts[2])?.unwrap_or(1).max(-i64::MAX);
    if step == 0 {
        return Err(Error::value("slice step cannot be zero"));
    }
    let [start, stop] = [part(&parts[0])?, part(&parts[1])?];
    let length = length as i64;
    let (lower, upper) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |index: Option<i64>, default: i64| match index {
        None => default,
        Some(index) if index < 0 => index.saturating_add(length).max(lower),
        Some(index) => index.min(upper),
    };
    let (start, stop) =
        if step > 0 { (bound(start, lower), bound(stop, upper)) } else { (bound(start, upper), bound(stop, lower)) };
    let distance = if step > 0 { stop - start } else { start - stop };
    let count = if distance > 0 { (distance - 1) / step.abs() + 1 } else { 0 };
    Ok((start, count as usize, step))
}

/// Evaluates `value[start:stop:step]`.
#[inline(never)]
pub(crate) fn slice(vm: &mut Vm, value: &Value, parts: &Rc<[Value; 3]>) -> Result<Value> {
    value.defined()?;
    let items = |items: &[Value], vm: &mut Vm| -> Result<Vec<Value>> {
        let (start, count, step) = slice_bounds(parts, items.len())?;
        vm.budget.scan(24 * count)?;
        Ok((0..count as i64).filter_map(|index| items.get((start + index * step) as usize).cloned()).collect())
    };
    match value {
        Value::Str(text) => {
            vm.budget.scan(text.text.len())?;
            let (start, count, step) = slice_bounds(parts, text.chars())?;
            vm.budget.build(count)?;
            let sliced: String = if step == 1 {
                text.text.chars().skip(start as usize).take(count).collect()
            } else {
                let characters: Vec<char> = text.text.chars().collect();
                (0..count as i64).filter_map(|index| characters.get((start + index * step) as usize)).collect()
            };
            Ok(Value::text(sliced, text.safe))
        }
        Value::List(seq) => {
            let items = items(&seq.items, vm)?;
            Value::list(items, &mut vm.budget)
        }
        Value::Tuple(seq) => {
            let items = items(&seq.items, vm)?;
            Value::tuple(items, &mut vm.budget)
        }
        Value::Range(range) => {
            let (first, count, step) = slice_bounds(parts, range.length)?;
            let start = range.start.saturating_add(range.step.saturating_mul(first));
            let step = range.step.saturating_mul(step);
            let stop = start.saturating_add(step.saturating_mul(count as i64));
            Ok(Value::Range(Rc::new(Range { start, stop, step, length: count })))
        }
        Value::Dict(_) => Err(Error::type_error("unhashable type: 'slice'")),
        other => Err(Error::type_error(format!("'{}' object is not subscriptable", other.type_name()))),
    }
}
