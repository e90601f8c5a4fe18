//! `pprint`: formats values over several lines of at most 80 characters.
//!
//! Source: Python's `pprint.PrettyPrinter`.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::error::Result;
use crate::key::order;
use crate::repr::repr;
use crate::unicode::is_space;
use crate::value::{Dict, Seq, Value};
use crate::vm::Vm;
use crate::wrap::split_lines;

const WIDTH: usize = 80;

pub(crate) fn pprint(vm: &mut Vm, value: &Value) -> Result<Value> {
    let mut out = String::new();
    format(vm, value, 0, 0, 0, &mut out)?;
    vm.string(out)
}

/// Returns a copy of the value in which all dicts are sorted by key.
fn sorted(value: &Value) -> Value {
    match value {
        Value::List(seq) => Value::List(Rc::new(Seq::unchecked(seq.items.iter().map(sorted).collect()))),
        Value::Tuple(seq) if !seq.is_group => {
            Value::Tuple(Rc::new(Seq::unchecked(seq.items.iter().map(sorted).collect())))
        }
        Value::Dict(dict) => {
            let map = pairs(dict).into_iter().map(|(key, value)| (crate::key::Key(key.clone()), sorted(value)));
            Value::Dict(Rc::new(Dict::unchecked(map.collect())))
        }
        other => other.clone(),
    }
}

fn pairs(dict: &Dict) -> Vec<(&Value, &Value)> {
    let mut pairs: Vec<(&Value, &Value)> = dict.map.iter().map(|(key, value)| (&key.0, value)).collect();
    pairs.sort_by(|(left, _), (right, _)| match order(left, right, "<") {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(_) => left.type_name().cmp(right.type_name()),
    });
    pairs
}

fn format(vm: &mut Vm, value: &Value, indent: usize, allowance: usize, level: usize, out: &mut String) -> Result<()> {
    vm.budget.step()?;
    vm.budget.check_value(out.len())?;
    vm.budget.scan(value.weight())?;
    let text = repr(&sorted(value), &mut vm.budget)?;
    if text.chars().count() as i64 <= WIDTH as i64 - indent as i64 - allowance as i64 {
        *out += &text;
        return Ok(());
    }
    match value {
        Value::Dict(dict) => {
            out.push('{');
            let pairs = pairs(dict);
            let count = pairs.len();
            for (index, (key, value)) in pairs.into_iter().enumerate() {
                let key = repr(&sorted(key), &mut vm.budget)?;
                *out += &key;
                *out += ": ";
                let last = index + 1 == count;
                let inner = indent + 1 + key.chars().count() + 2;
                format(vm, value, inner, if last { allowance + 1 } else { 1 }, level + 1, out)?;
                if !last {
                    new_line(vm, indent + 1, ",", out)?;
                }
            }
            out.push('}');
        }
        Value::List(seq) => items(vm, seq, ("[", "]"), (indent, allowance, level), out)?,
        Value::Tuple(seq) if !seq.is_group => {
            let close = if seq.items.len() == 1 { ",)" } else { ")" };
            items(vm, seq, ("(", close), (indent, allowance, level), out)?;
        }
        Value::Str(text) if !text.safe && !text.text.is_empty() => {
            string(vm, &text.text, (indent, allowance, level), &quoted(&text.text), out)?;
        }
        _ => *out += &text,
    }
    Ok(())
}

fn new_line(vm: &mut Vm, indent: usize, before: &str, out: &mut String) -> Result<()> {
    vm.budget.scan(indent)?;
    vm.budget.check_value(out.len() + indent)?;
    *out += before;
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent));
    Ok(())
}

/// Indentation, number of characters to keep free at the end of the last line, and nesting level.
type Place = (usize, usize, usize);

fn items(vm: &mut Vm, seq: &Seq, brackets: (&str, &str), place: Place, out: &mut String) -> Result<()> {
    let (indent, allowance, level) = place;
    *out += brackets.0;
    for (index, item) in seq.items.iter().enumerate() {
        let last = index + 1 == seq.items.len();
        format(vm, item, indent + 1, if last { allowance + brackets.1.len() } else { 1 }, level + 1, out)?;
        if !last {
            new_line(vm, indent + 1, ",", out)?;
        }
    }
    *out += brackets.1;
    Ok(())
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    crate::repr::string_repr(text, &mut out);
    out
}

/// Writes a long string as several literals, one per line.
fn string(vm: &mut Vm, text: &str, place: Place, whole: &str, out: &mut String) -> Result<()> {
    let (mut indent, mut allowance, level) = place;
    if level == 0 {
        (indent, allowance) = (indent + 1, allowance + 1);
    }
    let width = WIDTH as i64 - indent as i64;
    let fits = |text: &str, width: i64| text.chars().count() as i64 <= width;
    let lines = split_lines(text, true);
    let mut literals = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let last_line = index + 1 == lines.len();
        let literal = quoted(line);
        if fits(&literal, if last_line { width - allowance as i64 } else { width }) {
            literals.push(literal);
            continue;
        }
        let parts = words(line);
        let mut current = String::new();
        for (index, part) in parts.iter().enumerate() {
            vm.budget.scan(current.len() + part.len())?;
            let candidate = format!("{current}{part}");
            let last = last_line && index + 1 == parts.len();
            if fits(&quoted(&candidate), if last { width - allowance as i64 } else { width }) {
                current = candidate;
                continue;
            }
            if !current.is_empty() {
                literals.push(quoted(&current));
            }
            current = (*part).to_owned();
        }
        if !current.is_empty() {
            literals.push(quoted(&current));
        }
    }
    if literals.len() == 1 {
        *out += whole;
        return Ok(());
    }
    if level == 0 {
        out.push('(');
    }
    for (index, literal) in literals.iter().enumerate() {
        if index > 0 {
            new_line(vm, indent, "", out)?;
        }
        *out += literal;
    }
    if level == 0 {
        out.push(')');
    }
    Ok(())
}

/// Splits a line into words. Each word includes the white space after it.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        let end = rest[word..].find(|character| !is_space(character)).map_or(rest.len(), |length| word + length);
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}
