//! String methods.
//!
//! Methods of escaped text (`markupsafe.Markup`) return escaped text. Arguments that become part of the result are
//! escaped too.

use std::sync::Arc;

use crate::args::Args;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{format, format_map};
use crate::html::{escape, strip_tags, unescape};
use crate::iter::Iter;
use crate::methods::case::{capitalize, casefold, swap_case, title};
use crate::methods::find::{affix, find};
use crate::methods::translate::{make_translation, translate};
use crate::methods::{classes, split};
use crate::unicode::is_space;
use crate::value::{Text, Value};
use crate::vm::Vm;

pub(super) fn call(vm: &mut Vm, text: &Text, name: &str, args: Args) -> Result<Value> {
    if let Some(result) = classes::call(text, name, &args)? {
        return Ok(Value::Bool(result));
    }
    let changed = |vm: &mut Vm, changed: String| -> Result<Value> {
        vm.budget.build(changed.len())?;
        Ok(Value::text(changed, text.safe))
    };
    match name {
        "format" => format(vm, text, &args),
        "format_map" => {
            let mapping = args.one(name)?;
            format_map(vm, text, &mapping)
        }
        "upper" | "lower" | "title" | "capitalize" | "casefold" | "swapcase" => {
            args.none(name)?;
            let text = &text.text;
            changed(
                vm,
                match name {
                    "upper" => text.to_uppercase(),
                    "lower" => text.to_lowercase(),
                    "title" => title(text),
                    "capitalize" => capitalize(text),
                    "casefold" => casefold(text),
                    _ => swap_case(text),
                },
            )
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["/chars"], 0)?;
            strip(vm, text, chars, name != "rstrip", name != "lstrip")
        }
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => split::call(vm, text, name, args),
        "startswith" | "endswith" => affix(text, name, args),
        "removeprefix" | "removesuffix" => {
            let affix = string(&args.one(name)?, name)?;
            let removed = match name {
                "removeprefix" => text.text.strip_prefix(&*affix.text),
                _ => text.text.strip_suffix(&*affix.text),
            };
            changed(vm, removed.unwrap_or(&text.text).to_owned())
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["/old", "/new", "/count"], 2)?;
            let (old, new) = (required_string(old, name)?, required_string(new, name)?);
            let count = count.map_or(Ok(-1), |count| count.index())?;
            replace(vm, text, &old, &new, count)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, args),
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["/width", "/fillchar"], 1)?;
            let width = width.unwrap_or(Value::Int(0));
            match name {
                "center" => center(vm, text, width, fill),
                _ => justify(vm, text, width, fill, name == "ljust"),
            }
        }
        "zfill" => {
            let width = args.one(name)?.index()?;
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars());
            vm.budget.build(text.text.len().saturating_add(missing))?;
            let signed = text.text.starts_with(['+', '-']);
            let (sign, rest) = text.text.split_at(usize::from(signed));
            changed(vm, format!("{sign}{}{rest}", "0".repeat(missing)))
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            let size = usize::try_from(size.map_or(Ok(8), |size| size.index())?).unwrap_or(0);
            let tabs = text.text.matches('\t').count();
            vm.budget.build(text.text.len().saturating_add(size.saturating_mul(tabs)))?;
            changed(vm, expand_tabs(&text.text, size))
        }
        "join" => join(vm, text, &args.one(name)?),
        "maketrans" => make_translation(vm, args),
        "translate" => translate(vm, text, &args.one(name)?),
        "escape" if text.safe => {
            let value = args.one(name)?;
            let plain = vm.soft(&value)?;
            let escaped = if plain.safe { plain.text } else { escape(&plain.text, &mut vm.budget)?.into() };
            Ok(Value::safe(escaped))
        }
        "striptags" => {
            args.none(name)?;
            vm.string(strip_tags(&text.text))
        }
        "unescape" => {
            args.none(name)?;
            vm.string(unescape(&text.text))
        }
        "encode" => Err(Error::new(ErrorKind::Unsupported, "str.encode is not supported: there are no byte strings")),
        _ => Err(Error::type_error(format!("'str' object has no method '{name}'"))),
    }
}

pub(super) fn string(value: &Value, name: &str) -> Result<Text> {
    value
        .as_text()
        .cloned()
        .ok_or_else(|| Error::type_error(format!("{name}() argument must be str, not {}", value.type_name())))
}

pub(super) fn required_string(value: Option<Value>, name: &str) -> Result<Text> {
    string(&value.unwrap_or(Value::None), name)
}

/// Returns the text of an argument. Escapes it if `target` is escaped and the argument is not.
fn part(vm: &mut Vm, target: &Text, part: &Text) -> Result<Arc<str>> {
    match target.safe && !part.safe {
        true => Ok(escape(&part.text, &mut vm.budget)?.into()),
        false => Ok(part.text.clone()),
    }
}

/// Evaluates `strip`, `lstrip` and `rstrip`: removes `chars`, by default white space, from the `left` and `right` end.
pub(crate) fn strip(vm: &mut Vm, text: &Text, chars: Option<Value>, left: bool, right: bool) -> Result<Value> {
    let chars: Option<Vec<char>> = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(chars.text.chars().collect()),
        Some(other) => {
            other.defined()?;
            return Err(Error::type_error("strip arg must be None or str"));
        }
    };
    if let Some(chars) = &chars {
        vm.budget.scan(text.text.len().saturating_mul(chars.len()) / 16)?;
    }
    let strips = |character: char| match &chars {
        None => is_space(character),
        Some(chars) => chars.contains(&character),
    };
    let mut stripped = &*text.text;
    if left {
        stripped = stripped.trim_start_matches(strips);
    }
    if right {
        stripped = stripped.trim_end_matches(strips);
    }
    vm.budget.build(stripped.len())?;
    Ok(Value::text(stripped, text.safe))
}

/// Replaces `old` by `new` at most `count` times. A negative count means no limit.
pub(crate) fn replace(vm: &mut Vm, text: &Text, old: &Text, new: &Text, count: i64) -> Result<Value> {
    let new = part(vm, text, new)?;
    vm.budget.scan(text.text.len())?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = match old.text.is_empty() {
        true => text.chars() + 1,
        false => text.text.matches(&*old.text).count(),
    };
    let found = found.min(count);
    vm.budget.build(text.text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(Value::text(text.text.replacen(&*old.text, &new, found), text.safe))
}

fn fill_char(vm: &mut Vm, text: &Text, fill: Option<Value>) -> Result<char> {
    let Some(fill) = fill else { return Ok(' ') };
    let fill = fill.as_text().cloned().ok_or_else(|| Error::type_error("the fill character must be a string"))?;
    let fill = part(vm, text, &fill)?;
    let mut characters = fill.chars();
    match (characters.next(), characters.next()) {
        (Some(fill), None) => Ok(fill),
        _ => Err(Error::type_error("The fill character must be exactly one character long")),
    }
}

/// Returns the number of padding characters needed to reach `width`.
fn missing(vm: &mut Vm, text: &Text, width: &Value, fill: char) -> Result<usize> {
    let width = usize::try_from(width.index()?).unwrap_or(0);
    let missing = width.saturating_sub(text.chars());
    vm.budget.build(text.text.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    Ok(missing)
}

pub(crate) fn center(vm: &mut Vm, text: &Text, width: Value, fill: Option<Value>) -> Result<Value> {
    let fill = fill_char(vm, text, fill)?;
    let missing = missing(vm, text, &width, fill)?;
    let odd_width = (missing + text.chars()) & 1;
    let left = missing / 2 + (missing & odd_width & 1);
    let padding = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(Value::text(format!("{}{}{}", padding(left), text.text, padding(missing - left)), text.safe))
}

fn justify(vm: &mut Vm, text: &Text, width: Value, fill: Option<Value>, left: bool) -> Result<Value> {
    let fill = fill_char(vm, text, fill)?;
    let missing = missing(vm, text, &width, fill)?;
    let padding: String = std::iter::repeat_n(fill, missing).collect();
    let justified = if left { format!("{}{padding}", text.text) } else { format!("{padding}{}", text.text) };
    Ok(Value::text(justified, text.safe))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                expanded.push(character);
                column = 0;
            }
            _ => {
                expanded.push(character);
                column += 1;
            }
        }
    }
    expanded
}

fn join(vm: &mut Vm, separator: &Text, values: &Value) -> Result<Value> {
    let mut joined = String::new();
    let mut iter = match Iter::new(values) {
        Err(error) if error.kind() == ErrorKind::Type => return Err(Error::type_error("can only join an iterable")),
        iter => iter?,
    };
    let mut index = 0;
    while let Some(item) = iter.next(vm)? {
        vm.budget.step()?;
        let item = match &item {
            Value::Str(text) => text.clone(),
            // `Markup.join` accepts any value and escapes it.
            other if separator.safe => vm.soft(other)?,
            other => {
                let found = other.type_name();
                return Err(Error::type_error(format!("sequence item {index}: expected str instance, {found} found")));
            }
        };
        let item = part(vm, separator, &item)?;
        vm.budget.scan(separator.text.len() + item.len())?;
        vm.budget.check_value(joined.len() + separator.text.len() + item.len())?;
        if index > 0 {
            joined += &separator.text;
        }
        joined += &item;
        index += 1;
    }
    Ok(Value::text(joined, separator.safe))
}
