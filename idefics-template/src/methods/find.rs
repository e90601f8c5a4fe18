//! Methods that search a string.

use crate::args::Args;
use crate::error::{Error, Result};
use crate::methods::text::required_string;
use crate::value::{Text, Value};

pub(super) fn affix(text: &Text, name: &str, args: Args) -> Result<Value> {
    let [affix, start, end] = args.bind(name, ["/affix", "/start", "/end"], 1)?;
    let slice = Slice::new(&text.text, start, end)?;
    let holds = |affix: &Text| match (name, slice.text) {
        (_, None) => false,
        ("startswith", Some(text)) => text.starts_with(&*affix.text),
        (_, Some(text)) => text.ends_with(&*affix.text),
    };
    let wrong = |value: &Value| {
        let found = value.type_name();
        Error::type_error(format!("{name} first arg must be str or a tuple of str, not {found}"))
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

/// The part of a text between two character positions, with the semantics of a Python slice.
struct Slice<'a> {
    /// The selected part; `None` if the start is after the end.
    text: Option<&'a str>,
    /// Number of characters before the part.
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
                    Error::type_error("slice indices must be integers or None or have an __index__ method")
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

pub(super) fn find(text: &Text, name: &str, args: Args) -> Result<Value> {
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
