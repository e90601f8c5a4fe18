//! `str.format` and `str.format_map`, with the sandbox's restrictions on attributes.
//!
//! Source: `string.Formatter` and `jinja2.sandbox.SandboxedFormatter`.

use crate::args::Args;
use crate::error::{Error, Result};
use crate::format_spec::format_value;
use crate::html::escape;
use crate::repr::{ascii, repr, to_str};
use crate::value::{Text, Value};
use crate::vm::Vm;

/// Evaluates `format.format(*args)`.
pub(crate) fn format(vm: &mut Vm, format: &Text, args: &Args) -> Result<Value> {
    let mut formatter = Formatter { vm, args, mapping: None, automatic: Some(0), safe: format.safe };
    let text = formatter.run(&format.text, 3)?;
    Ok(Value::text(text, format.safe))
}

/// Evaluates `format.format_map(mapping)`.
pub(crate) fn format_map(vm: &mut Vm, format: &Text, mapping: &Value) -> Result<Value> {
    let args = Args::default();
    let mut formatter = Formatter { vm, args: &args, mapping: Some(mapping), automatic: Some(0), safe: format.safe };
    let text = formatter.run(&format.text, 3)?;
    Ok(Value::text(text, format.safe))
}

struct Formatter<'a, 'vm> {
    vm: &'a mut Vm<'vm>,
    args: &'a Args,
    mapping: Option<&'a Value>,
    /// Index of the next `{}`; `None` once a field has an explicit index.
    automatic: Option<usize>,
    safe: bool,
}

impl Formatter<'_, '_> {
    fn run(&mut self, format: &str, depth: u32) -> Result<String> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(Error::value("Max string recursion exceeded"));
        };
        self.vm.budget.scan(format.len())?;
        let mut out = String::new();
        let mut rest = format;
        while let Some(found) = rest.find(['{', '}']) {
            out += &rest[..found];
            let brace = rest.as_bytes()[found];
            let after = &rest[found + 1..];
            if after.as_bytes().first() == Some(&brace) {
                out.push(char::from(brace));
                rest = &after[1..];
                continue;
            }
            if brace == b'}' {
                return Err(Error::value("Single '}' encountered in format string"));
            }
            if after.is_empty() {
                return Err(Error::value("Single '{' encountered in format string"));
            }
            let end = field_end(after).ok_or_else(|| Error::value("expected '}' before end of string"))?;
            out += &self.field(&after[..end], depth)?;
            self.vm.budget.step()?;
            self.vm.budget.check_value(out.len())?;
            rest = &after[end + 1..];
        }
        out += rest;
        self.vm.budget.build(out.len())?;
        Ok(out)
    }

    fn field(&mut self, field: &str, depth: u32) -> Result<String> {
        let mut bracket = false;
        let end = field.find(|character| {
            match character {
                '[' => bracket = true,
                ']' => bracket = false,
                _ => {}
            }
            !bracket && matches!(character, '!' | ':')
        });
        let (name, rest) = field.split_at(end.unwrap_or(field.len()));
        if name.contains('{') {
            return Err(Error::value("unexpected '{' in field name"));
        }
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => {
                let mut characters = rest.chars();
                let conversion = characters
                    .next()
                    .ok_or_else(|| Error::value("end of string while looking for conversion specifier"))?;
                match characters.as_str() {
                    "" => (Some(conversion), ""),
                    rest => match rest.strip_prefix(':') {
                        Some(spec) => (Some(conversion), spec),
                        None => return Err(Error::value("expected ':' after conversion specifier")),
                    },
                }
            }
            None => (None, rest.strip_prefix(':').unwrap_or(rest)),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::str(to_str(&value, &mut self.vm.budget)?),
            Some('r') => Value::str(repr(&value, &mut self.vm.budget)?),
            Some('a') => Value::str(ascii(&repr(&value, &mut self.vm.budget)?)),
            Some(other) => return Err(Error::value(format!("Unknown conversion specifier {other}"))),
        };
        let spec = self.run(spec, depth)?;
        if !self.safe {
            return format_value(&value, &spec, &mut self.vm.budget);
        }
        if value.is_safe() {
            if !spec.is_empty() {
                return Err(Error::value("Unsupported format specification for Markup."));
            }
            return Ok(to_str(&value, &mut self.vm.budget)?.to_string());
        }
        let text = format_value(&value, &spec, &mut self.vm.budget)?;
        escape(&text, &mut self.vm.budget)
    }

    /// Evaluates a field name: `name.attribute[item]…`.
    fn value(&mut self, field: &str) -> Result<Value> {
        let automatic;
        let field = match field {
            "" => {
                let Some(next) = self.automatic else {
                    let message = "cannot switch from manual field specification to automatic field numbering";
                    return Err(Error::value(message));
                };
                self.automatic = Some(next + 1);
                automatic = next.to_string();
                &automatic
            }
            field => {
                if matches!(key(field), Value::Int(_)) {
                    if self.automatic.is_some_and(|next| next > 0) {
                        let message = "cannot switch from automatic field numbering to manual field specification";
                        return Err(Error::value(message));
                    }
                    self.automatic = None;
                }
                field
            }
        };
        let end = field.find(['.', '[']).unwrap_or(field.len());
        let (first, mut rest) = field.split_at(end);
        let mut value = self.first(first)?;
        while !rest.is_empty() {
            self.vm.budget.step()?;
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                if end == 0 {
                    return Err(Error::value("Empty attribute in format string"));
                }
                value = self.vm.get_attr(&value, &after[..end])?;
                rest = &after[end..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = after.find(']').ok_or_else(|| Error::value("Missing ']' in format string"))?;
                if end == 0 {
                    return Err(Error::value("Empty attribute in format string"));
                }
                value = self.vm.get_item(&value, &key(&after[..end]))?;
                rest = &after[end + 1..];
            } else {
                return Err(Error::value("Only '.' or '[' may follow ']' in format field specifier"));
            }
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Result<Value> {
        let index = match key(name) {
            Value::Int(index) => usize::try_from(index).ok(),
            _ => None,
        };
        match (index, self.mapping) {
            (Some(index), _) => {
                let value = self.args.positional.get(index).cloned();
                value.ok_or_else(|| {
                    Error::value(format!("Replacement index {index} out of range for positional args tuple"))
                })
            }
            (None, Some(Value::Dict(dict))) => {
                dict.map.get(name).cloned().ok_or_else(|| Error::value(format!("the mapping has no key '{name}'")))
            }
            (None, Some(Value::Undefined(undefined))) => Err(undefined.error()),
            (None, Some(other)) => Err(Error::type_error(format!("{} indices must be integers", other.type_name()))),
            (None, None) => {
                let found = self.args.named.iter().find(|(known, _)| **known == *name);
                found.map(|(_, value)| value.clone()).ok_or_else(|| Error::value(format!("missing argument '{name}'")))
            }
        }
    }
}

/// Returns the byte offset of the brace that closes a field.
fn field_end(text: &str) -> Option<usize> {
    let mut open = 1;
    let mut bracket = false;
    let mut in_spec = false;
    for (index, character) in text.char_indices() {
        match character {
            '[' if !in_spec => bracket = true,
            ']' if !in_spec => bracket = false,
            _ if bracket => {}
            ':' | '!' => in_spec = true,
            '{' => open += 1,
            '}' => {
                open -= 1;
                if open == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

/// Converts a field name or item key: to an integer if it consists of digits, otherwise to a string.
fn key(text: &str) -> Value {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true if !text.is_empty() => text.parse().map_or_else(|_| Value::str(text), Value::Int),
        _ => Value::str(text),
    }
}
