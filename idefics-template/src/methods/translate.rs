//! `maketrans` and `translate` of strings.

use crate::args::Args;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::methods::text::string;
use crate::value::{Text, Value};
use crate::vm::Vm;

/// Evaluates `str.maketrans`: builds the table for `str.translate`.
pub(super) fn make_translation(vm: &mut Vm, args: Args) -> Result<Value> {
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
                    _ => return Err(Error::type_error("keys in translate table must be strings or integers")),
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
        _ => return Err(Error::type_error("maketrans takes a mapping, or two or three strings")),
    }
    Value::dict(map, &mut vm.budget)
}

pub(super) fn translate(vm: &mut Vm, text: &Text, table: &Value) -> Result<Value> {
    if text.text.is_empty() {
        return Ok(Value::Str(text.clone()));
    }
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
            other => return Err(Error::type_error(format!("'{}' object is not subscriptable", other.type_name()))),
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
            Some(_) => return Err(Error::type_error("character mapping must return integer, None or str")),
        }
    }
    vm.budget.build(translated.len())?;
    Ok(Value::text(translated, text.safe))
}
