//! Methods of strings.
//!
//! On escaped text (`markupsafe.Markup`), results are escaped text too, and arguments that become part of them are
//! escaped first.

use std::sync::Arc;

use crate::args::Args;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{format, format_map};
use crate::html::{escape, strip_tags, unescape};
use crate::iter::Iter;
use crate::methods::{classes, split};
use crate::unicode::{is_space, to_title};
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
        "encode" => Err(Error::new(ErrorKind::Unsupported, "str.encode gives bytes, which templates do not have here")),
        _ => Err(Error::of_type(format!("'str' object has no method '{name}'"))),
    }
}

pub(super) fn string(value: &Value, name: &str) -> Result<Text> {
    value
        .as_text()
        .cloned()
        .ok_or_else(|| Error::of_type(format!("{name}() argument must be str, not {}", value.type_name())))
}

fn required_string(value: Option<Value>, name: &str) -> Result<Text> {
    string(&value.unwrap_or(Value::None), name)
}

/// The text of an argument, escaped if it becomes part of escaped text.
fn part(vm: &mut Vm, of: &Text, part: &Text) -> Result<Arc<str>> {
    match of.safe && !part.safe {
        true => Ok(escape(&part.text, &mut vm.budget)?.into()),
        false => Ok(part.text.clone()),
    }
}

pub(crate) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(to_title).into_iter().flatten();
    first.chain(characters.as_str().to_lowercase().chars()).collect()
}

fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for (index, character) in text.char_indices() {
        match in_word {
            // The end of a word decides about the last sigma.
            true if character == 'Σ' => titled.push(sigma(&text[..index], &text[index + 2..])),
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(to_title(character)),
        }
        in_word = is_cased(character);
    }
    titled
}

/// The small sigma between two texts.
fn sigma(before: &str, after: &str) -> char {
    let ends = before.chars().next_back().is_some_and(is_cased) && !after.chars().next().is_some_and(is_cased);
    if ends { 'ς' } else { 'σ' }
}

pub(super) fn is_cased(character: char) -> bool {
    character.is_uppercase() || character.is_lowercase() || is_title(character)
}

/// Letters that are two in one, the first of them large.
pub(super) fn is_title(character: char) -> bool {
    use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
    !character.is_ascii() && character.general_category() == GeneralCategory::TitlecaseLetter
}

fn casefold(text: &str) -> String {
    let fold = |character: char| -> String {
        match character {
            'ı' => "ı".to_owned(),
            'İ' => "i\u{307}".to_owned(),
            character => character.to_uppercase().flat_map(char::to_lowercase).collect(),
        }
    };
    text.chars().map(fold).collect()
}

fn swap_case(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            upper if upper.is_uppercase() => swapped.extend(upper.to_lowercase()),
            lower if lower.is_lowercase() => swapped.extend(lower.to_uppercase()),
            other => swapped.push(other),
        }
    }
    swapped
}

/// `strip`, `lstrip` and `rstrip`.
pub(crate) fn strip(vm: &mut Vm, text: &Text, chars: Option<Value>, left: bool, right: bool) -> Result<Value> {
    let chars: Option<Vec<char>> = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(chars.text.chars().collect()),
        Some(other) => {
            other.defined()?;
            return Err(Error::of_type("strip arg must be None or str"));
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

fn affix(text: &Text, name: &str, args: Args) -> Result<Value> {
    let [affix, start, end] = args.bind(name, ["/affix", "/start", "/end"], 1)?;
    let slice = Slice::new(&text.text, start, end)?;
    let holds = |affix: &Text| match (name, slice.text) {
        (_, None) => false,
        ("startswith", Some(text)) => text.starts_with(&*affix.text),
        (_, Some(text)) => text.ends_with(&*affix.text),
    };
    let wrong = |value: &Value| {
        let found = value.type_name();
        Error::of_type(format!("{name} first arg must be str or a tuple of str, not {found}"))
    };
    match affix.unwrap_or(Value::None) {
        Value::Str(affix) => Ok(Value::Bool(holds(&affix))),
        Value::Tuple(affixes) => {
            for affix in &affixes.items {
                if holds(affix.as_text().ok_or_else(|| wrong(affix))?) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        other => Err(wrong(&other)),
    }
}

/// A part of a text, given by positions of characters as in a slice.
struct Slice<'a> {
    /// The part; nothing if it would begin after its end.
    text: Option<&'a str>,
    /// Characters before the part.
    skipped: usize,
}

impl<'a> Slice<'a> {
    fn new(text: &'a str, start: Option<Value>, end: Option<Value>) -> Result<Self> {
        if start.is_none() && end.is_none() {
            return Ok(Self { text: Some(text), skipped: 0 });
        }
        let length = text.chars().count() as i64;
        let bound = |value: Option<Value>, default: i64| match value {
            None | Some(Value::None) => Ok(default),
            Some(value) => {
                let index = value.as_index().ok_or_else(|| {
                    Error::of_type("slice indices must be integers or None or have an __index__ method")
                })?;
                Ok(if index < 0 { index.saturating_add(length).max(0) } else { index })
            }
        };
        let (start, end) = (bound(start, 0)?, bound(end, length)?.min(length));
        if start > end {
            return Ok(Self { text: None, skipped: 0 });
        }
        let offset = |index: i64| text.char_indices().nth(index as usize).map_or(text.len(), |(offset, _)| offset);
        Ok(Self { text: Some(&text[offset(start)..offset(end)]), skipped: start as usize })
    }
}

fn find(text: &Text, name: &str, args: Args) -> Result<Value> {
    let [part, start, end] = args.bind(name, ["/sub", "/start", "/end"], 1)?;
    let part = required_string(part, name)?;
    let slice = Slice::new(&text.text, start, end)?;
    let within = slice.text.unwrap_or_default();
    if name == "count" {
        let count = match (slice.text, part.text.is_empty()) {
            (None, _) => 0,
            (Some(text), true) => text.chars().count() + 1,
            (Some(text), false) => text.matches(&*part.text).count(),
        };
        return Ok(Value::usize(count));
    }
    let found = match name {
        _ if slice.text.is_none() => None,
        "find" | "index" => within.find(&*part.text),
        _ => within.rfind(&*part.text),
    };
    match found {
        Some(offset) => Ok(Value::usize(slice.skipped + within[..offset].chars().count())),
        None if matches!(name, "find" | "rfind") => Ok(Value::Int(-1)),
        None => Err(Error::value("substring not found")),
    }
}

/// `replace`, at most `count` times unless that is negative.
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
    let fill = fill.as_text().cloned().ok_or_else(|| Error::of_type("the fill character must be a string"))?;
    let fill = part(vm, text, &fill)?;
    let mut characters = fill.chars();
    match (characters.next(), characters.next()) {
        (Some(fill), None) => Ok(fill),
        _ => Err(Error::of_type("The fill character must be exactly one character long")),
    }
}

/// The padding that a text lacks up to `width`.
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
        Err(error) if error.kind() == ErrorKind::Type => return Err(Error::of_type("can only join an iterable")),
        iter => iter?,
    };
    let mut index = 0;
    while let Some(item) = iter.next(vm)? {
        vm.budget.step()?;
        let item = match &item {
            Value::Str(text) => text.clone(),
            // `Markup.join` escapes whatever it is given.
            other if separator.safe => vm.soft(other)?,
            other => {
                let found = other.type_name();
                return Err(Error::of_type(format!("sequence item {index}: expected str instance, {found} found")));
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

/// `str.maketrans`.
fn make_translation(vm: &mut Vm, args: Args) -> Result<Value> {
    use crate::key::Key;
    let [from, to, remove] = args.bind("maketrans", ["/x", "/y", "/z"], 1)?;
    let code = |character: char| Key(Value::Int(i64::from(u32::from(character))));
    let mut map = indexmap::IndexMap::new();
    match (from, to) {
        (Some(Value::Dict(dict)), None) => {
            for (key, value) in &dict.map {
                let key = match &key.0 {
                    Value::Str(text) => {
                        let mut characters = text.text.chars();
                        match (characters.next(), characters.next()) {
                            (Some(character), None) => code(character),
                            _ => return Err(Error::value("string keys in translate table must be of length 1")),
                        }
                    }
                    Value::Int(_) => key.clone(),
                    _ => return Err(Error::of_type("keys in translate table must be strings or integers")),
                };
                map.insert(key, value.clone());
            }
        }
        (Some(Value::Str(from)), Some(Value::Str(to))) => {
            if from.chars() != to.chars() {
                return Err(Error::value("the first two maketrans arguments must have equal length"));
            }
            vm.budget.build((from.text.len() + to.text.len()).saturating_mul(32))?;
            for (from, to) in from.text.chars().zip(to.text.chars()) {
                map.insert(code(from), code(to).0);
            }
            if let Some(remove) = remove {
                let remove = string(&remove, "maketrans")?;
                map.extend(remove.text.chars().map(|character| (code(character), Value::None)));
            }
        }
        _ => return Err(Error::of_type("maketrans takes a mapping, or two or three strings")),
    }
    Value::dict(map, &mut vm.budget)
}

fn translate(vm: &mut Vm, text: &Text, table: &Value) -> Result<Value> {
    table.defined()?;
    let mut translated = String::with_capacity(text.text.len());
    for character in text.text.chars() {
        vm.budget.check_value(translated.len())?;
        let key = Value::Int(i64::from(u32::from(character)));
        let found = match table {
            Value::Dict(dict) => dict.get(&key).cloned(),
            Value::List(_) | Value::Tuple(_) | Value::Str(_) => {
                Some(vm.get_item(table, &key)?).filter(|value| !value.is_undefined())
            }
            other => return Err(Error::of_type(format!("'{}' object is not subscriptable", other.type_name()))),
        };
        match found {
            None => translated.push(character),
            Some(Value::None) => {}
            Some(Value::Str(text)) => {
                vm.budget.scan(text.text.len())?;
                translated += &text.text;
            }
            Some(Value::Int(code)) => match u32::try_from(code).ok().and_then(char::from_u32) {
                Some(character) => translated.push(character),
                None => return Err(Error::value("character mapping must be in range(0x110000)")),
            },
            Some(_) => return Err(Error::of_type("character mapping must return integer, None or str")),
        }
    }
    vm.budget.build(translated.len())?;
    Ok(Value::text(translated, text.safe))
}
