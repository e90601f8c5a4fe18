//! The built-in filters.
//!
//! Source: `jinja2.filters`, and `tojson` from Transformers.

mod numbers;
mod sequences;
mod texts;

use std::sync::Arc;

use crate::args::Args;
use crate::error::{Error, ErrorKind, Result};
use crate::iter::{Iter, Lazy, LazyStep};
use crate::json::to_json;
use crate::repr::to_str;
use crate::value::{Text, Value};
use crate::vm::Vm;

const NAMES: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Whether a filter of this name exists.
pub(crate) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

impl Vm<'_> {
    /// Evaluates `value|name(args)`.
    #[inline(never)]
    pub(crate) fn call_filter(&mut self, name: &str, value: Value, args: Args) -> Result<Value> {
        self.budget.step()?;
        let values = args.positional.iter().chain(args.named.iter().map(|(_, value)| value));
        self.budget.scan(values.filter_map(Value::as_str).map(str::len).sum())?;
        match name {
            "attr" => {
                let [name] = args.bind("attr", ["name"], 1)?;
                let name = name.unwrap_or(Value::None);
                let name = name.as_str().ok_or_else(|| Error::type_error("attribute name must be string"))?;
                // The filter `attr` does not fall back to the items of a dict, although `value.name` does.
                match &value {
                    Value::Dict(_) if !crate::attr::has_method(&value, name) => {
                        Ok(Value::undefined(format!("'dict object' has no attribute '{name}'")))
                    }
                    value => self.get_attr(value, name),
                }
            }
            "default" | "d" => {
                let [default, boolean] = args.bind("default", ["default_value", "boolean"], 0)?;
                let use_default =
                    value.is_undefined() || (boolean.is_some_and(|test| test.is_true()) && !value.is_true());
                Ok(if use_default { default.unwrap_or_else(|| Value::str("")) } else { value })
            }
            "map" => {
                let iter = self.map(&value, args);
                self.generator(iter, "sync_do_map")
            }
            "select" | "reject" | "selectattr" | "rejectattr" => {
                let (rejects, by_attribute) = (name.starts_with("reject"), name.ends_with("attr"));
                let iter = self.select(&value, args, rejects, by_attribute);
                self.generator(iter, "select_or_reject")
            }
            "tojson" => to_json(self, &value, args),
            "string" => {
                args.none("soft_str")?;
                self.soft(&value).map(Value::Str)
            }
            "safe" => {
                args.none("safe")?;
                Ok(Value::safe(to_str(&value, &mut self.budget)?))
            }
            "length" | "count" => {
                args.none("len")?;
                if let Value::Str(text) = &value {
                    self.budget.scan(text.text.len() / 8)?;
                }
                value.length().map(Value::usize)
            }
            _ => {
                if let Value::Str(text) = &value {
                    self.budget.scan(text.text.len())?;
                }
                if let Some(result) = numbers::call(self, name, &value, &args)? {
                    return Ok(result);
                }
                match sequences::call(self, name, &value, args)? {
                    Ok(result) => Ok(result),
                    Err(args) => texts::call(self, name, &value, args),
                }
            }
        }
    }

    fn map(&mut self, value: &Value, mut args: Args) -> Result<Iter> {
        let step = if args.positional.is_empty() && args.named.iter().any(|(name, _)| &**name == "attribute") {
            let attribute = args.take_named("attribute").unwrap_or(Value::None);
            let default = args.take_named("default").filter(|default| !matches!(default, Value::None));
            if let Some((name, _)) = args.named.first() {
                return Err(Error::value(format!("Unexpected keyword argument '{name}'")));
            }
            LazyStep::Attribute(self.attribute_parts(&attribute)?, default)
        } else {
            match args.take_first() {
                Some(name) => LazyStep::Filter(self.named(&name, exists, "filter", value)?, args),
                None if !value.is_true() => LazyStep::Attribute(Vec::new(), None),
                None => return Err(Error::value("map requires a filter argument")),
            }
        };
        lazy(value, step)
    }

    fn select(&mut self, value: &Value, mut args: Args, rejects: bool, by_attribute: bool) -> Result<Iter> {
        let attribute = match by_attribute {
            false => Vec::new(),
            true => match args.take_first() {
                Some(attribute) => self.attribute_parts(&attribute)?,
                None if !value.is_true() => Vec::new(),
                None => return Err(Error::value("Missing parameter for attribute name")),
            },
        };
        let test = match args.take_first() {
            Some(name) => Some((self.named(&name, crate::tests::exists, "test", value)?, args)),
            None => None,
        };
        lazy(value, LazyStep::Select { attribute, test, rejects })
    }

    /// Returns the name of the filter or test that is passed as an argument to a filter like `map` or `select`.
    fn named(&self, name: &Value, exists: fn(&str) -> bool, kind: &str, value: &Value) -> Result<Arc<str>> {
        match name {
            Value::Str(text) if exists(&text.text) || !value.is_true() => Ok(text.text.clone()),
            Value::Str(text) => Err(Error::value(format!("No {kind} named '{}'.", text.text))),
            // For an empty sequence the filter or test is never called, so any name is accepted.
            _ if !value.is_true() => Ok("".into()),
            _ => Err(Error::type_error(format!("the name of a {kind} must be a string"))),
        }
    }

    /// Creates a generator. Errors are deferred until the generator is read, except exceeded limits.
    fn generator(&mut self, iter: Result<Iter>, function: &'static str) -> Result<Value> {
        match iter {
            Err(error) if error.kind() != ErrorKind::Limit => self.iterator(Iter::Fails(error), function),
            iter => self.iterator(iter?, function),
        }
    }

    /// Converts the value of a filter to text.
    fn filter_text(&mut self, value: &Value) -> Result<Text> {
        self.soft(value)
    }
}

fn lazy(value: &Value, step: LazyStep) -> Result<Iter> {
    let source = if value.is_true() { Iter::new(value)? } else { Iter::Empty };
    Ok(Iter::Lazy(Box::new(Lazy { source, step })))
}
