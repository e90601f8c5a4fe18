//! Text filters.

use crate::args::Args;
use crate::error::{Error, Result};
use crate::html::{escape, strip_tags};
use crate::iter::Iter;
use crate::methods::text as methods;
use crate::pprint::pprint;
use crate::printf::printf;
use crate::repr::to_str;
use crate::unicode::{is_space, is_word};
use crate::urlize::urlize;
use crate::value::{Text, Value};
use crate::vm::Vm;
use crate::wrap::{split_lines, wrap};

pub(super) fn call(vm: &mut Vm, name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "upper" | "lower" | "capitalize" | "title" | "wordcount" => {
            args.none(name)?;
            let text = vm.filter_text(value)?;
            vm.budget.scan(text.text.len())?;
            let plain = match name {
                "upper" => text.text.to_uppercase(),
                "lower" => text.text.to_lowercase(),
                "capitalize" => crate::methods::case::capitalize(&text.text),
                "wordcount" => {
                    let words = text.text.split(|character| !is_word(character)).filter(|word| !word.is_empty());
                    return Ok(Value::usize(words.count()));
                }
                _ => {
                    let titled = title(&text.text);
                    return vm.string(titled);
                }
            };
            vm.budget.build(plain.len())?;
            Ok(Value::text(plain, text.safe))
        }
        "center" => {
            let [width] = args.bind("center", ["width"], 0)?;
            let text = vm.filter_text(value)?;
            methods::center(vm, &text, width.unwrap_or(Value::Int(80)), None)
        }
        "trim" => {
            let [chars] = args.bind("trim", ["chars"], 0)?;
            let text = vm.filter_text(value)?;
            methods::strip(vm, &text, chars, true, true)
        }
        "escape" | "e" => {
            args.none("escape")?;
            match value {
                Value::Str(text) if text.safe => Ok(value.clone()),
                value => {
                    let text = to_str(value, &mut vm.budget)?;
                    escape(&text, &mut vm.budget).map(Value::safe)
                }
            }
        }
        "forceescape" => {
            args.none("forceescape")?;
            let text = to_str(value, &mut vm.budget)?;
            escape(&text, &mut vm.budget).map(Value::safe)
        }
        "striptags" => {
            args.none("striptags")?;
            let text = to_str(value, &mut vm.budget)?;
            vm.budget.scan(text.len())?;
            vm.string(strip_tags(&text))
        }
        "replace" => {
            let [old, new, count] = args.bind("replace", ["old", "new", "count"], 2)?;
            replace(vm, value, &old.unwrap_or(Value::None), &new.unwrap_or(Value::None), count)
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return Err(Error::value("can't handle positional and keyword arguments at the same time"));
            }
            let format = vm.filter_text(value)?;
            let values = if args.named.is_empty() {
                Value::tuple(args.positional, &mut vm.budget)?
            } else {
                let named = args.named.into_iter().map(|(name, value)| (crate::key::Key::str(name), value));
                Value::dict(named.collect(), &mut vm.budget)?
            };
            printf(vm, &format, &values)
        }
        "indent" => indent(vm, value, args),
        "truncate" => truncate(vm, value, args),
        "wordwrap" => word_wrap(vm, value, args),
        "urlencode" => {
            args.none("urlencode")?;
            url_encode(vm, value)
        }
        "urlize" => urlize(vm, value, args),
        "xmlattr" => xml_attributes(vm, value, args),
        "pprint" => {
            args.none("pprint")?;
            pprint(vm, value)
        }
        _ => Err(Error::value(format!("No filter named '{name}'."))),
    }
}

/// Capitalises every word, as the filter `title` does. Source: `do_title`.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut first = true;
    let mut word = String::new();
    for character in text.chars() {
        if character == '-' || is_space(character) || matches!(character, '(' | '{' | '[' | '<') {
            titled += &word.to_lowercase();
            word.clear();
            titled.push(character);
            first = true;
        } else if first {
            titled.extend(character.to_uppercase());
            first = false;
        } else {
            word.push(character);
        }
    }
    titled + &word.to_lowercase()
}

/// Evaluates the filter `replace`. Source: `do_replace`.
fn replace(vm: &mut Vm, value: &Value, old: &Value, new: &Value, count: Option<Value>) -> Result<Value> {
    let count = match count {
        None | Some(Value::None) => -1,
        Some(count) => count.index()?,
    };
    let plain = |vm: &mut Vm, value: &Value| -> Result<Text> {
        Ok(Text { text: to_str(value, &mut vm.budget)?, safe: vm.autoescape && value.is_safe() })
    };
    let (mut text, old, new) = (plain(vm, value)?, plain(vm, old)?, plain(vm, new)?);
    if vm.autoescape && !text.safe && (old.safe || new.safe) {
        text = Text { text: escape(&text.text, &mut vm.budget)?.into(), safe: true };
    }
    methods::replace(vm, &text, &old, &new, count)
}

/// Evaluates the filter `indent`. Source: `do_indent`.
fn indent(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let width = width.unwrap_or(Value::Int(4));
    let Value::Str(text) = value.defined()? else {
        return Err(Error::type_error(format!("can only indent strings, not '{}'", value.type_name())));
    };
    let lines = text.text.matches('\n').count() + 2;
    let indention = match &width {
        // The indentation counts as escaped if the text does.
        Value::Str(width) => width.text.to_string(),
        width => {
            let width = usize::try_from(width.index()?).unwrap_or(0);
            vm.budget.build(width.saturating_mul(lines))?;
            " ".repeat(width)
        }
    };
    vm.budget.build(indention.len().saturating_mul(lines).saturating_add(text.text.len()))?;
    let with_break = format!("{}\n", text.text);
    let blank = blank.is_some_and(|blank| blank.is_true());
    let mut indented = String::new();
    for (index, line) in split_lines(&with_break, false).into_iter().enumerate() {
        if index > 0 {
            indented.push('\n');
            if blank || !line.is_empty() {
                indented += &indention;
            }
        } else if first.as_ref().is_some_and(Value::is_true) {
            indented += &indention;
        }
        indented += line;
        vm.budget.check_value(indented.len())?;
    }
    vm.budget.build(indented.len())?;
    Ok(Value::text(indented, text.safe))
}

/// Evaluates the filter `truncate`. Source: `do_truncate`.
fn truncate(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [length, killwords, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = length.unwrap_or(Value::Int(255)).index()?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => leeway.index()?,
    };
    let end = end.unwrap_or_else(|| Value::str("..."));
    let Some(end_text) = end.as_text() else { return Err(Error::type_error("truncate() end must be a string")) };
    let end_length = end_text.chars() as i64;
    if length < end_length || leeway < 0 {
        return Err(Error::value(format!("expected length >= {end_length}, got {length}")));
    }
    if value.length()? as i64 <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let Value::Str(text) = value else {
        return Err(Error::type_error(format!("can only truncate strings, not '{}'", value.type_name())));
    };
    let kept: String = text.text.chars().take((length - end_length) as usize).collect();
    let kept = match killwords.is_some_and(|kill| kill.is_true()) {
        true => &kept,
        false => kept.rsplit_once(' ').map_or(&*kept, |(kept, _)| kept),
    };
    let kept = Value::text(kept, text.safe);
    crate::ops::binary(vm, crate::ast::BinaryOp::Add, &kept, &end)
}

/// Evaluates the filter `wordwrap`. Source: `do_wordwrap`.
fn word_wrap(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let params = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, break_long, wrapstring, hyphens] = args.bind("wordwrap", params, 0)?;
    let Value::Str(text) = value.defined()? else {
        return Err(Error::type_error(format!("'{}' object has no attribute 'splitlines'", value.type_name())));
    };
    let width = width.unwrap_or(Value::Int(79)).index()?;
    let break_long = break_long.is_none_or(|value| value.is_true());
    let hyphens = hyphens.is_none_or(|value| value.is_true());
    let separator = match wrapstring {
        None | Some(Value::None) => "\n".into(),
        Some(Value::Str(text)) => text.text,
        Some(other) => {
            return Err(Error::type_error(format!("'{}' object has no attribute 'join'", other.type_name())));
        }
    };
    let lines = split_lines(&text.text, false);
    if width <= 0 && !lines.is_empty() {
        return Err(Error::value(format!("invalid width {width} (must be > 0)")));
    }
    let width = usize::try_from(width).unwrap_or(0);
    // Every wrapped line is a separate string until the lines are joined.
    let line_bytes = size_of::<String>() + 32 + separator.len();
    vm.budget.build(text.text.len().saturating_mul(2 + line_bytes / width.max(1)))?;
    let mut wrapped = String::new();
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            wrapped += &separator;
        }
        wrapped += &wrap(line, width, break_long, hyphens).join(&separator);
        vm.budget.check_value(wrapped.len())?;
    }
    vm.string(wrapped)
}

/// Percent-encodes a text for a URL. Source: `url_quote`.
fn quote(text: &str, query: bool, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// Evaluates the filter `urlencode`. Source: `do_urlencode`.
fn url_encode(vm: &mut Vm, value: &Value) -> Result<Value> {
    let mut out = String::new();
    let pairs = match value {
        Value::Dict(dict) => Iter::new(&Value::View(crate::value::View::Items, dict.clone())).ok(),
        Value::Str(_) => None,
        value => Iter::new(value).ok(),
    };
    let Some(mut pairs) = pairs else {
        let text = to_str(value, &mut vm.budget)?;
        vm.budget.build(text.len().saturating_mul(3))?;
        quote(&text, false, &mut out);
        return vm.string(out);
    };
    let mut first = true;
    while let Some(pair) = pairs.next(vm)? {
        vm.budget.step()?;
        let parts = Iter::new(&pair)?.collect(vm)?;
        let [name, value] = &parts[..] else {
            return Err(Error::value(format!("{} values to unpack, expected 2", parts.len())));
        };
        if !std::mem::take(&mut first) {
            out.push('&');
        }
        for (value, sign) in [(name, "="), (value, "")] {
            let text = to_str(value, &mut vm.budget)?;
            vm.budget.build(text.len().saturating_mul(3).saturating_add(out.len() / 64))?;
            quote(&text, true, &mut out);
            out.push_str(sign);
        }
        vm.budget.check_value(out.len())?;
    }
    vm.string(out)
}

/// Evaluates the filter `xmlattr`. Source: `do_xmlattr`.
fn xml_attributes(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [autospace] = args.bind("xmlattr", ["autospace"], 0)?;
    let dict = match value.defined()? {
        Value::Dict(dict) => dict,
        other => return Err(Error::type_error(format!("'{}' object has no attribute 'items'", other.type_name()))),
    };
    let mut out = String::new();
    for (key, value) in &dict.map {
        vm.budget.step()?;
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let Some(name) = key.0.as_text() else { return Err(Error::type_error("attribute names must be strings")) };
        if name.text.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return Err(Error::value(format!("Invalid character in attribute name: '{}'", name.text)));
        }
        let mut escaped = |value: &Value| -> Result<String> {
            let text = to_str(value, &mut vm.budget)?;
            if value.is_safe() { Ok(text.to_string()) } else { escape(&text, &mut vm.budget) }
        };
        let attribute = format!("{}=\"{}\"", escaped(&key.0)?, escaped(value)?);
        if !out.is_empty() {
            out.push(' ');
        }
        out += &attribute;
        vm.budget.check_value(out.len())?;
    }
    if !out.is_empty() && autospace.is_none_or(|autospace| autospace.is_true()) {
        out.insert(0, ' ');
    }
    vm.budget.build(out.len())?;
    Ok(Value::text(out, vm.autoescape))
}
