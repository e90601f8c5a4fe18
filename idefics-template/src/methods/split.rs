//! Methods that split strings.

use crate::args::Args;
use crate::error::{Error, Result};
use crate::methods::text::string;
use crate::unicode::is_space;
use crate::value::{Text, Value};
use crate::vm::Vm;
use crate::wrap::split_lines;

pub(super) fn call(vm: &mut Vm, text: &Text, name: &str, args: Args) -> Result<Value> {
    let source = &*text.text;
    let parts: Vec<&str> = match name {
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            split_lines(source, keep.map_or(Ok(false), |keep| keep.flag())?)
        }
        "partition" | "rpartition" => {
            let separator = string(&args.one(name)?, name)?;
            let separator = &*separator.text;
            if separator.is_empty() {
                return Err(Error::value("empty separator"));
            }
            let parts = match name {
                "partition" => {
                    source.split_once(separator).map_or([source, "", ""], |(head, tail)| [head, separator, tail])
                }
                _ => source.rsplit_once(separator).map_or(["", "", source], |(head, tail)| [head, separator, tail]),
            };
            let parts = values(vm, parts.to_vec(), text.safe)?;
            return Value::tuple(parts, &mut vm.budget);
        }
        _ => {
            let [separator, count] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let count = count.map_or(Ok(-1), |count| count.index())?;
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            match separator {
                None | Some(Value::None) => words(source, count, name == "rsplit"),
                Some(separator) => {
                    let separator = string(&separator, name)?;
                    if separator.text.is_empty() {
                        return Err(Error::value("empty separator"));
                    }
                    let count = count.saturating_add(1);
                    let mut parts: Vec<&str> = match name {
                        "split" => source.splitn(count, &*separator.text).collect(),
                        _ => source.rsplitn(count, &*separator.text).collect(),
                    };
                    if name == "rsplit" {
                        parts.reverse();
                    }
                    parts
                }
            }
        }
    };
    let parts = values(vm, parts, text.safe)?;
    Value::list(parts, &mut vm.budget)
}

fn values(vm: &mut Vm, parts: Vec<&str>, safe: bool) -> Result<Vec<Value>> {
    vm.budget.build(parts.iter().map(|part| part.len() + 24).sum())?;
    Ok(parts.into_iter().map(|part| Value::text(part, safe)).collect())
}

/// Splits at white space at most `count` times, from the start or from the end.
fn words(source: &str, count: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = source;
    if from_end {
        loop {
            rest = rest.trim_end_matches(is_space);
            if rest.is_empty() {
                break;
            }
            let start = match parts.len() < count {
                true => rest
                    .char_indices()
                    .rev()
                    .find(|(_, character)| is_space(*character))
                    .map(|(index, space)| index + space.len_utf8()),
                false => None,
            };
            parts.push(&rest[start.unwrap_or(0)..]);
            rest = &rest[..start.unwrap_or(0)];
        }
        parts.reverse();
        return parts;
    }
    loop {
        rest = rest.trim_start_matches(is_space);
        if rest.is_empty() {
            return parts;
        }
        let end = if parts.len() < count { rest.find(is_space) } else { None };
        parts.push(&rest[..end.unwrap_or(rest.len())]);
        rest = &rest[end.unwrap_or(rest.len())..];
    }
}
