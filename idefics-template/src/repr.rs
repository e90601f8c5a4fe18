//! `str` and `repr` of values.

use std::sync::Arc;

use num_bigint::BigInt;

use crate::budget::{Budget, MAX_VALUE_DEPTH};
use crate::digits::float_repr;
use crate::error::{Error, Result};
use crate::object::{Function, Object};
use crate::unicode::is_printable;
use crate::value::{Text, Value, View};

/// Converts a value to text as Python's `str` does.
pub(crate) fn to_str(value: &Value, budget: &mut Budget) -> Result<Arc<str>> {
    match value {
        Value::Str(text) => Ok(text.text.clone()),
        Value::Undefined(_) => Ok("".into()),
        Value::None => Ok("None".into()),
        value => Ok(repr(value, budget)?.into()),
    }
}

/// Converts a value to text as `soft_str` of markupsafe does. Strings are kept, including whether they are escaped.
pub(crate) fn soft_text(value: &Value, budget: &mut Budget) -> Result<Text> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        value => Ok(Text { text: to_str(value, budget)?, safe: false }),
    }
}

/// Formats a value as Python's `repr` does.
pub(crate) fn repr(value: &Value, budget: &mut Budget) -> Result<String> {
    budget.build(value.weight().min(budget.value_bytes()))?;
    let mut writer = Writer { out: String::new(), depth: 0, limit: budget.value_bytes() };
    writer.value(value)?;
    budget.build(writer.out.len())?;
    Ok(writer.out)
}

/// Returns the decimal digits of an integer. Fails above 4300 digits, as Python does.
pub(crate) fn int_digits(number: &BigInt) -> Result<String> {
    let text = number.to_string();
    match text.len() > 4300 {
        true => Err(Error::value("an integer with more than 4300 digits cannot be converted to text")),
        false => Ok(text),
    }
}

struct Writer {
    out: String,
    depth: u32,
    limit: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) -> Result<()> {
        if self.out.len() > self.limit {
            return Err(Error::limit(format!("{} bytes in one value", self.limit)));
        }
        // A namespace can contain itself, so the recursion must be limited.
        if self.depth > 2 * MAX_VALUE_DEPTH {
            return Err(Error::limit(format!("{MAX_VALUE_DEPTH} nested values")));
        }
        self.depth += 1;
        match value {
            Value::Undefined(_) => self.out += "Undefined",
            Value::None => self.out += "None",
            Value::Bool(true) => self.out += "True",
            Value::Bool(false) => self.out += "False",
            Value::Int(number) => self.out += &number.to_string(),
            Value::Big(number) => self.out += &int_digits(number)?,
            Value::Float(number) => self.out += &float_repr(*number),
            Value::Str(text) if text.safe => {
                self.out += "Markup(";
                string_repr(&text.text, &mut self.out);
                self.out.push(')');
            }
            Value::Str(text) => string_repr(&text.text, &mut self.out),
            Value::List(seq) => self.items("[", &seq.items, "]")?,
            Value::Tuple(seq) => self.items("(", &seq.items, if seq.items.len() == 1 { ",)" } else { ")" })?,
            Value::Dict(dict) => self.pairs(dict.map.iter().map(|(key, value)| (&key.0, value)))?,
            Value::View(view, dict) => {
                self.out += match view {
                    View::Keys => "dict_keys(",
                    View::Values => "dict_values(",
                    View::Items => "dict_items(",
                };
                self.out.push('[');
                for (index, (key, value)) in dict.map.iter().enumerate() {
                    self.out += if index > 0 { ", " } else { "" };
                    match view {
                        View::Keys => self.value(&key.0)?,
                        View::Values => self.value(value)?,
                        View::Items => self.items("(", [&key.0, value], ")")?,
                    }
                }
                self.out += "])";
            }
            Value::Range(range) => {
                self.out += &match range.step {
                    1 => format!("range({}, {})", range.start, range.stop),
                    step => format!("range({}, {}, {step})", range.start, range.stop),
                };
            }
            Value::Slice(parts) => {
                self.out += "slice";
                self.items("(", &**parts, ")")?;
            }
            Value::Object(object) => self.object(object)?,
        }
        self.depth -= 1;
        Ok(())
    }

    fn items<'a>(&mut self, open: &str, items: impl IntoIterator<Item = &'a Value>, close: &str) -> Result<()> {
        self.out += open;
        for (index, item) in items.into_iter().enumerate() {
            self.out += if index > 0 { ", " } else { "" };
            self.value(item)?;
        }
        self.out += close;
        Ok(())
    }

    fn pairs<'a>(&mut self, pairs: impl Iterator<Item = (&'a Value, &'a Value)>) -> Result<()> {
        self.out.push('{');
        for (index, (key, value)) in pairs.enumerate() {
            self.out += if index > 0 { ", " } else { "" };
            self.value(key)?;
            self.out += ": ";
            self.value(value)?;
        }
        self.out.push('}');
        Ok(())
    }

    /// Writes an object. Python prints the address of an object; here the address is always 0.
    fn object(&mut self, object: &Object) -> Result<()> {
        match object {
            Object::Namespace(attributes) => {
                self.out += "<Namespace ";
                let attributes = attributes.borrow();
                self.pairs(attributes.iter().map(|(key, value)| (&key.0, value)))?;
                self.out.push('>');
            }
            Object::Macro(object) => match &object.declared.name {
                Some(name) => self.out += &format!("<Macro '{name}'>"),
                None => self.out += "<Macro anonymous>",
            },
            Object::Loop(state) => {
                let Ok(state) = state.try_borrow() else { return Ok(()) };
                let length = state.length.map_or_else(|| "?".to_owned(), |length| length.to_string());
                self.out += &format!("<LoopContext {}/{length}>", state.yielded);
            }
            Object::Function(Function::Cycler) => self.out += "<class 'jinja2.utils.Cycler'>",
            Object::Function(Function::Joiner) => self.out += "<class 'jinja2.utils.Joiner'>",
            Object::Function(Function::Range) => self.out += "<function safe_range at 0x0>",
            Object::Function(Function::Lipsum) => self.out += "<function generate_lorem_ipsum at 0x0>",
            Object::Template => self.out += "<TemplateReference None>",
            Object::Method { receiver, name } => {
                self.out += &format!("<built-in method {name} of {} object at 0x0>", receiver.type_name());
            }
            Object::Iter { name, .. } if Object::is_generator(name) => {
                self.out += &format!("<generator object {name} at 0x0>");
            }
            object => self.out += &format!("<{} object at 0x0>", object.type_name()),
        }
        Ok(())
    }
}

/// Writes a string as Python's `repr` does.
pub(crate) fn string_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            _ if is_printable(character) => out.push(character),
            _ => out.push_str(&match u32::from(character) {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code @ ..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// Escapes all non-ASCII characters, as Python's `ascii` does.
pub(crate) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character) {
            ..=0x7f => out.push(character),
            code @ ..=0xff => out.push_str(&format!("\\x{code:02x}")),
            code @ ..=0xffff => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}
