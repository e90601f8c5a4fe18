//! The filter `tojson`. As in Transformers, it calls `json.dumps`. Unlike Jinja2's own filter, it does not escape HTML
//! characters.

use crate::args::Args;
use crate::budget::Budget;
use crate::digits::{float_repr, non_finite};
use crate::error::{Error, Result};
use crate::key::order;
use crate::repr::{int_digits, to_str};
use crate::value::Value;
use crate::vm::Vm;

/// The options of `json.dumps`, and the maximum length of the output in bytes.
struct Options {
    ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    limit: usize,
}

/// Evaluates the filter `tojson`. Source: `tojson` in `_cached_compile_jinja_template`.
pub(crate) fn to_json(vm: &mut Vm, value: &Value, args: Args) -> Result<Value> {
    let [ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
    let is_string = value.as_str().is_some();
    let indent = match indent.unwrap_or(Value::None) {
        // `indent` does not apply to a single string, so its value is not checked.
        _ if is_string => None,
        Value::None => None,
        Value::Str(text) => Some(text.text.to_string()),
        width => {
            let width = usize::try_from(width.index()?).unwrap_or(0);
            vm.budget.build(width)?;
            Some(" ".repeat(width))
        }
    };
    let (item_separator, key_separator) = match separators.unwrap_or(Value::None) {
        Value::None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        // `separators` does not apply to a single string, so any two items are accepted.
        Value::List(seq) | Value::Tuple(seq) if is_string && seq.items.len() == 2 => Default::default(),
        Value::List(seq) | Value::Tuple(seq) => match &seq.items[..] {
            [Value::Str(item), Value::Str(key)] => (item.text.to_string(), key.text.to_string()),
            _ => return Err(Error::type_error("tojson() argument 'separators' must be a pair of strings")),
        },
        // Python also unpacks a string of two characters into two separators.
        Value::Str(text) if text.chars() == 2 => {
            let mut characters = text.text.chars().map(String::from);
            (characters.next().unwrap_or_default(), characters.next().unwrap_or_default())
        }
        _ => return Err(Error::type_error("tojson() argument 'separators' must be a pair of strings")),
    };
    let options = Options {
        ascii: ascii.is_some_and(|ascii| ascii.is_true()),
        indent,
        item_separator,
        key_separator,
        sort_keys: sort_keys.is_some_and(|sort| sort.is_true()),
        limit: vm.budget.value_bytes(),
    };
    vm.budget.scan(value.weight())?;
    let mut out = String::new();
    write(value, &options, 1, &mut out, &mut vm.budget)?;
    vm.string(out)
}

fn write(value: &Value, options: &Options, depth: usize, out: &mut String, budget: &mut Budget) -> Result<()> {
    if out.len() > options.limit {
        return budget.check_value(out.len());
    }
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Big(number) => out.push_str(&int_digits(number)?),
        Value::Float(number) => out.push_str(&float(*number)),
        Value::Str(text) => string(&text.text, options.ascii, out),
        Value::List(seq) | Value::Tuple(seq) => {
            if seq.items.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (index, item) in seq.items.iter().enumerate() {
                separate(index > 0, options, depth, out);
                write(item, options, depth + 1, out, budget)?;
            }
            new_line(options, depth - 1, out);
            out.push(']');
        }
        Value::Dict(dict) => {
            if dict.map.is_empty() {
                out.push_str("{}");
                return Ok(());
            }
            let mut pairs: Vec<(&Value, &Value)> = dict.map.iter().map(|(key, value)| (&key.0, value)).collect();
            if options.sort_keys {
                budget.scan(64 * pairs.len())?;
                let mut failed = None;
                pairs.sort_by(|(left, _), (right, _)| match order(left, right, "<") {
                    Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
                    Err(error) => {
                        failed.get_or_insert(error);
                        std::cmp::Ordering::Equal
                    }
                });
                failed.map_or(Ok(()), Err)?;
            }
            out.push('{');
            for (index, (key, value)) in pairs.into_iter().enumerate() {
                separate(index > 0, options, depth, out);
                match key {
                    Value::Str(text) => string(&text.text, options.ascii, out),
                    Value::Bool(_) | Value::None => {
                        out.push('"');
                        write(key, options, depth, out, budget)?;
                        out.push('"');
                    }
                    Value::Float(number) => {
                        out.push_str(&format!("\"{}\"", float(*number)));
                    }
                    Value::Int(_) | Value::Big(_) => out.push_str(&format!("\"{}\"", to_str(key, budget)?)),
                    _ => {
                        let name = key.type_name();
                        let message = format!("keys must be str, int, float, bool or None, not {name}");
                        return Err(Error::type_error(message));
                    }
                }
                out.push_str(&options.key_separator);
                write(value, options, depth + 1, out, budget)?;
            }
            new_line(options, depth - 1, out);
            out.push('}');
        }
        other => {
            return Err(Error::type_error(format!("Object of type {} is not JSON serializable", other.type_name())));
        }
    }
    Ok(())
}

fn separate(after_item: bool, options: &Options, depth: usize, out: &mut String) {
    if after_item {
        out.push_str(&options.item_separator);
    }
    new_line(options, depth, out);
}

fn new_line(options: &Options, depth: usize, out: &mut String) {
    if let Some(indent) = &options.indent {
        out.push('\n');
        // Adds nothing once the limit is exceeded. The next `write` then fails.
        if out.len() <= options.limit {
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }
}

fn float(number: f64) -> String {
    match non_finite(number) {
        Some("nan") => "NaN".to_owned(),
        Some("inf") => "Infinity".to_owned(),
        Some(_) => "-Infinity".to_owned(),
        None => float_repr(number),
    }
}

fn string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0c' => out.push_str("\\f"),
            '\x08' => out.push_str("\\b"),
            '\0'..='\x1f' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            '\x7f'.. if ascii => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}
