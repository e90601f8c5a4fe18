//! Filters for sequences and dicts.

use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexSet;

use crate::args::Args;
use crate::ast::BinaryOp;
use crate::error::{Error, Result};
use crate::iter::Iter;
use crate::key::{Key, equal, order};
use crate::ops;
use crate::repr::to_str;
use crate::value::{Dict, Seq, Value, View};
use crate::vm::Vm;

/// Calls a sequence filter. If there is no sequence filter of this name, returns the arguments as the inner error.
pub(super) fn call(vm: &mut Vm, name: &str, value: &Value, args: Args) -> Result<Result<Value, Args>> {
    Ok(Ok(match name {
        "batch" => {
            let [count, fill] = args.bind("batch", ["linecount", "fill_with"], 1)?;
            let iter = batch(vm, value, count, fill);
            vm.generator(iter, "do_batch")?
        }
        "dictsort" => dict_sort(vm, value, args)?,
        "first" => {
            args.none("first")?;
            let first = Iter::new(value)?.next(vm)?;
            // If the value is an iterator that was partly read, the first item is the next unread item.
            first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty."))
        }
        "last" => {
            args.none("last")?;
            let last = if value.is_undefined() { None } else { Iter::reversed(value)?.next(vm)? };
            last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty."))
        }
        "groupby" => group_by(vm, value, args)?,
        "items" => {
            args.none("items")?;
            let iter = match value {
                Value::Undefined(_) => Iter::Empty,
                Value::Dict(dict) => Iter::new(&Value::View(View::Items, dict.clone()))?,
                _ => Iter::Fails(Error::type_error("Can only get item pairs from a mapping.")),
            };
            vm.iterator(iter, "do_items")?
        }
        "join" => join(vm, value, args)?,
        "list" => {
            args.none("list")?;
            let items = Iter::new(value)?.collect(vm)?;
            Value::list(items, &mut vm.budget)?
        }
        "max" | "min" => min_or_max(vm, name, value, args)?,
        "random" => {
            args.none("random")?;
            match value.defined()?.length()? {
                0 => Value::undefined("No random item, sequence was empty."),
                length => {
                    let index = Value::usize(vm.random(length));
                    vm.get_item(value, &index)?
                }
            }
        }
        "reverse" => {
            args.none("reverse")?;
            match value {
                Value::Str(text) => {
                    vm.budget.build(text.text.len())?;
                    Value::text(text.text.chars().rev().collect::<String>(), text.safe)
                }
                value => match Iter::reversed(value) {
                    Ok(iter) => {
                        let name = match value {
                            Value::List(_) => "list_reverseiterator",
                            Value::Tuple(_) => "reversed",
                            Value::Range(_) => "range_iterator",
                            Value::View(View::Values, _) => "dict_reversevalueiterator",
                            Value::View(View::Items, _) => "dict_reverseitemiterator",
                            _ => "dict_reversekeyiterator",
                        };
                        vm.iterator(iter, name)?
                    }
                    Err(_) => {
                        let mut items = Iter::new(value)?.collect(vm)?;
                        items.reverse();
                        Value::list(items, &mut vm.budget)?
                    }
                },
            }
        }
        "slice" => {
            let [slices, fill] = args.bind("slice", ["slices", "fill_with"], 1)?;
            let iter = slice(vm, value, slices, fill);
            vm.generator(iter, "sync_do_slice")?
        }
        "sort" => {
            let [reverse, case_sensitive, attribute] =
                args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
            let attributes = multi_attribute(vm, attribute)?;
            let items = Iter::new(value)?.collect(vm)?;
            let keep_case = is_true(case_sensitive);
            let keyed = keyed(vm, items, |vm, item| {
                let keys = attributes.iter().map(|parts| {
                    let key = vm.attribute(item, parts, None)?;
                    if keep_case { Ok(key) } else { ignore_case(vm, key) }
                });
                let keys = keys.collect::<Result<Vec<_>>>()?;
                Value::list(keys, &mut vm.budget)
            })?;
            let items = sorted(vm, keyed, is_reversed(reverse)?)?;
            Value::list(items, &mut vm.budget)?
        }
        "sum" => {
            let [attribute, start] = args.bind("sum", ["attribute", "start"], 0)?;
            let parts = vm.attribute_parts(&attribute.unwrap_or(Value::None))?;
            let mut sum = start.unwrap_or(Value::Int(0));
            if sum.as_str().is_some() {
                return Err(Error::type_error("sum() can't sum strings [use ''.join(seq) instead]"));
            }
            let mut iter = Iter::new(value)?;
            while let Some(item) = iter.next(vm)? {
                vm.budget.step()?;
                let item = vm.attribute(&item, &parts, None)?;
                sum = ops::binary(vm, BinaryOp::Add, &sum, &item)?;
            }
            sum
        }
        "unique" => {
            let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"], 0)?;
            let iter = unique(vm, value, is_true(case_sensitive), attribute);
            vm.generator(iter, "sync_do_unique")?
        }
        _ => return Ok(Err(args)),
    }))
}

fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

fn is_reversed(reverse: Option<Value>) -> Result<bool> {
    reverse.map_or(Ok(false), |reverse| reverse.flag())
}

fn iter_over(items: Vec<Value>) -> Iter {
    Iter::seq(Rc::new(Seq::unchecked(items)))
}

/// Evaluates the filter `unique`. Source: `sync_do_unique`.
fn unique(vm: &mut Vm, value: &Value, keep_case: bool, attribute: Option<Value>) -> Result<Iter> {
    let parts = vm.attribute_parts(&attribute.unwrap_or(Value::None))?;
    let mut iter = Iter::new(value)?;
    let mut seen: IndexSet<Key> = IndexSet::new();
    let mut items = Vec::new();
    while let Some(item) = iter.next(vm)? {
        vm.budget.step()?;
        vm.budget.scan(64 + item.weight() / 8)?;
        let key = vm.attribute(&item, &parts, None)?;
        let key = if keep_case { key } else { ignore_case(vm, key)? };
        if seen.insert(Key::new(key)?) {
            items.push(item);
        }
    }
    Ok(iter_over(items))
}

/// Converts strings to lower case. Other values are unchanged.
fn ignore_case(vm: &mut Vm, value: Value) -> Result<Value> {
    match &value {
        Value::Str(text) => {
            let lower = text.text.to_lowercase();
            vm.string(lower)
        }
        _ => Ok(value),
    }
}

/// Splits a comma-separated list of attribute paths. Source: `make_multi_attrgetter`.
fn multi_attribute(vm: &mut Vm, attribute: Option<Value>) -> Result<Vec<Vec<Value>>> {
    match attribute {
        Some(Value::Str(text)) => {
            // Each path becomes a list with at least one string.
            vm.budget
                .build(text.text.split(',').count().saturating_mul(size_of::<Vec<Value>>() + size_of::<Value>()))?;
            text.text.split(',').map(|part| vm.attribute_parts(&Value::str(part))).collect()
        }
        Some(other) => Ok(vec![vm.attribute_parts(&other)?]),
        None => Ok(vec![Vec::new()]),
    }
}

/// Pairs each item with its sort key.
fn keyed(
    vm: &mut Vm,
    items: Vec<Value>,
    mut key: impl FnMut(&mut Vm, &Value) -> Result<Value>,
) -> Result<Vec<(Value, Value)>> {
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        vm.budget.step()?;
        keyed.push((key(vm, &item)?, item));
    }
    Ok(keyed)
}

/// Sorts `(key, item)` pairs as Python's `sorted` does. Items with equal keys keep their order, even if `reverse` is
/// set.
fn sorted(vm: &mut Vm, mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let weight: usize = keyed.iter().map(|(key, _)| key.weight()).fold(0, usize::saturating_add);
    vm.budget.scan(weight.saturating_mul(usize::BITS as usize - keyed.len().leading_zeros() as usize) / 4)?;
    let mut failed = None;
    if reverse {
        keyed.reverse();
    }
    keyed.sort_by(|(left, _), (right, _)| match order(left, right, "<") {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(error) => {
            failed.get_or_insert(error);
            Ordering::Equal
        }
    });
    if reverse {
        keyed.reverse();
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn batch(vm: &mut Vm, value: &Value, count: Option<Value>, fill: Option<Value>) -> Result<Iter> {
    let count = count.unwrap_or(Value::None);
    let items = Iter::new(value)?.collect(vm)?;
    // Python compares the length of the batch with the count. The length never equals a count that is negative or that
    // is not a number.
    let size = match &count {
        Value::Float(number) if number.fract() == 0.0 => Some(*number as i64),
        count => count.as_index(),
    };
    let mut batches = Vec::new();
    let mut current = Vec::new();
    for item in items {
        if size == i64::try_from(current.len()).ok() {
            batches.push(Value::list(std::mem::take(&mut current), &mut vm.budget)?);
        }
        current.push(item);
    }
    if !current.is_empty() {
        if let Some(fill) = fill.filter(|fill| !matches!(fill, Value::None)) {
            let missing = ops::binary(vm, BinaryOp::Sub, &count, &Value::usize(current.len()))?;
            if matches!(missing, Value::Float(number) if number > 0.0) {
                return Err(Error::type_error("can't multiply sequence by non-int of type 'float'"));
            }
            let missing = usize::try_from(missing.as_index().unwrap_or(0)).unwrap_or(0);
            vm.budget.build(fill.weight().max(24).saturating_mul(missing))?;
            current.extend(std::iter::repeat_n(fill, missing));
        }
        batches.push(Value::list(current, &mut vm.budget)?);
    }
    Ok(iter_over(batches))
}

/// Evaluates the filter `slice`. Source: `sync_do_slice`.
fn slice(vm: &mut Vm, value: &Value, slices: Option<Value>, fill: Option<Value>) -> Result<Iter> {
    let items = Iter::new(value)?.collect(vm)?;
    let slices = slices.unwrap_or(Value::None).index()?;
    if slices == 0 {
        return Err(Error::value("integer division or modulo by zero"));
    }
    let slices = usize::try_from(slices).unwrap_or(0);
    vm.budget.build(slices.saturating_mul(32))?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let (each, extra) = match slices {
        0 => (0, 0),
        slices => (items.len() / slices, items.len() % slices),
    };
    let mut parts = Vec::new();
    let mut rest = items.into_iter();
    for index in 0..slices {
        vm.budget.step()?;
        let mut part: Vec<Value> = rest.by_ref().take(each + usize::from(index < extra)).collect();
        if let Some(fill) = &fill
            && index >= extra
        {
            part.push(fill.clone());
        }
        parts.push(Value::list(part, &mut vm.budget)?);
    }
    Ok(iter_over(parts))
}

fn dict_sort(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let by_value = match by.as_ref().map(Value::as_str) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return Err(Error::value("You can only sort by either \"key\" or \"value\"")),
    };
    let keep_case = is_true(case_sensitive);
    let dict: &Dict = match value.defined()? {
        Value::Dict(dict) => dict,
        other => return Err(Error::type_error(format!("'{}' object has no attribute 'items'", other.type_name()))),
    };
    let mut pairs = Vec::with_capacity(dict.map.len());
    for (key, value) in &dict.map {
        let sort_key = if by_value { value } else { &key.0 }.clone();
        let sort_key = if keep_case { sort_key } else { ignore_case(vm, sort_key)? };
        pairs.push((sort_key, Value::tuple(vec![key.0.clone(), value.clone()], &mut vm.budget)?));
    }
    let items = sorted(vm, pairs, is_reversed(reverse)?)?;
    Value::list(items, &mut vm.budget)
}

/// Evaluates the filter `groupby`. Source: `sync_do_groupby`.
fn group_by(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let parts = vm.attribute_parts(&attribute.unwrap_or(Value::None))?;
    let default = default.filter(|default| !matches!(default, Value::None));
    let keep_case = is_true(case_sensitive);
    let items = Iter::new(value)?.collect(vm)?;
    let pairs = keyed(vm, items, |vm, item| {
        let key = vm.attribute(item, &parts, default.as_ref())?;
        if keep_case { Ok(key) } else { ignore_case(vm, key) }
    })?;
    let by_item =
        pairs.iter().map(|(key, item)| (key.clone(), Value::tuple(vec![key.clone(), item.clone()], &mut vm.budget)));
    let by_item = by_item.map(|(key, pair)| Ok((key, pair?))).collect::<Result<Vec<_>>>()?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in sorted(vm, by_item, false)? {
        let Value::Tuple(pair) = &pair else { continue };
        let [key, item] = &pair.items[..] else { continue };
        match groups.last_mut() {
            Some((known, items)) if equal(known, key) => items.push(item.clone()),
            _ => groups.push((key.clone(), vec![item.clone()])),
        }
    }
    let mut result = Vec::with_capacity(groups.len());
    for (key, items) in groups {
        let key = match items.first() {
            Some(first) if !keep_case => vm.attribute(first, &parts, default.as_ref())?,
            _ => key,
        };
        let items = Value::list(items, &mut vm.budget)?;
        result.push(Value::Tuple(Rc::new(Seq::group(vec![key, items], &mut vm.budget)?)));
    }
    Value::list(result, &mut vm.budget)
}

/// Evaluates the filters `min` and `max`. Source: `_min_or_max`.
fn min_or_max(vm: &mut Vm, name: &str, value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let parts = vm.attribute_parts(&attribute.unwrap_or(Value::None))?;
    let keep_case = is_true(case_sensitive);
    let (wanted, sign) = if name == "max" { (Ordering::Greater, ">") } else { (Ordering::Less, "<") };
    let mut iter = Iter::new(value)?;
    let mut best: Option<(Value, Value)> = None;
    while let Some(item) = iter.next(vm)? {
        vm.budget.step()?;
        let key = vm.attribute(&item, &parts, None)?;
        let key = if keep_case { key } else { ignore_case(vm, key)? };
        let better = match &best {
            Some((best, _)) => order(&key, best, sign)? == Some(wanted),
            None => true,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(match best {
        Some((_, item)) => item,
        None => Value::undefined("No aggregated item, sequence was empty."),
    })
}

/// Evaluates the filter `join`. Source: `sync_do_join`.
fn join(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"], 0)?;
    let parts = vm.attribute_parts(&attribute.unwrap_or(Value::None))?;
    let separator = separator.unwrap_or_else(|| Value::str(""));
    let mut items = Iter::new(value)?.collect(vm)?;
    for item in &mut items {
        *item = vm.attribute(item, &parts, None)?;
    }
    let safe = vm.autoescape && (separator.is_safe() || items.iter().any(Value::is_safe));
    let piece = |vm: &mut Vm, value: &Value| -> Result<std::sync::Arc<str>> {
        let text = to_str(value, &mut vm.budget)?;
        match safe && !value.is_safe() {
            true => Ok(crate::html::escape(&text, &mut vm.budget)?.into()),
            false => Ok(text),
        }
    };
    let separator = piece(vm, &separator)?;
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        let item = piece(vm, item)?;
        vm.budget.check_value(text.len() + separator.len() + item.len())?;
        vm.budget.scan(separator.len() + item.len())?;
        if index > 0 {
            text += &separator;
        }
        text += &item;
    }
    Ok(Value::text(text, safe))
}
