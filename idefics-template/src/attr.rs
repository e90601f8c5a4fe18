//! Attribute and item access, with the restrictions of the reference's sandbox.
//!
//! Source: `jinja2.sandbox.SandboxedEnvironment.getattr` and `getitem`, and `ImmutableSandboxedEnvironment`.

use std::rc::Rc;

use num_bigint::BigInt;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{check_hashable, to_bigint};
use crate::object::{Function, Loop, Object, Undefined};
use crate::value::{Value, View};
use crate::vm::Vm;

const STR_METHODS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const MARKUP_METHODS: &[&str] = &["escape", "striptags", "unescape"];
const LIST_MUTATORS: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT_MUTATORS: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
/// Attributes that every Python object has. The sandbox hides all of them.
const OBJECT_ATTRIBUTES: &[&str] = &[
    "__class__",
    "__delattr__",
    "__dir__",
    "__doc__",
    "__eq__",
    "__format__",
    "__ge__",
    "__getattribute__",
    "__gt__",
    "__hash__",
    "__init__",
    "__init_subclass__",
    "__le__",
    "__lt__",
    "__ne__",
    "__new__",
    "__reduce__",
    "__reduce_ex__",
    "__repr__",
    "__setattr__",
    "__sizeof__",
    "__str__",
    "__subclasshook__",
    "__len__",
    "__getitem__",
    "__contains__",
    "__iter__",
    "__add__",
    "__mul__",
    "__rmul__",
    "__class_getitem__",
];

/// Whether a value has a method `name` that the sandbox allows.
pub(crate) fn has_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(text) => STR_METHODS.contains(&name) || (text.safe && MARKUP_METHODS.contains(&name)),
        Value::List(_) => matches!(name, "copy" | "count" | "index"),
        Value::Tuple(seq) => matches!(name, "count" | "index") && !(seq.is_group && matches!(name, "list")),
        Value::Range(_) => matches!(name, "count" | "index"),
        Value::Dict(_) => matches!(name, "copy" | "fromkeys" | "get" | "items" | "keys" | "values"),
        Value::View(view, _) => name == "isdisjoint" && *view != View::Values,
        Value::Bool(_) | Value::Int(_) | Value::Big(_) => {
            matches!(name, "as_integer_ratio" | "bit_count" | "bit_length" | "conjugate")
        }
        Value::Float(_) => matches!(name, "as_integer_ratio" | "conjugate" | "hex" | "is_integer"),
        Value::Object(object) => match &**object {
            Object::Loop(_) => matches!(name, "changed" | "cycle"),
            Object::Cycler { .. } => matches!(name, "next" | "reset"),
            Object::Function(Function::Dict) => name == "fromkeys",
            _ => false,
        },
        _ => false,
    }
}

fn unsafe_attr(value: &Value, name: &str) -> Value {
    Value::Undefined(Rc::new(Undefined::Unsafe { type_name: value.type_name(), name: name.into() }))
}

/// Whether the attribute exists in Python and the sandbox hides it.
fn is_hidden(value: &Value, name: &str) -> bool {
    if value.is_undefined() && matches!(name, "__contains__" | "__class_getitem__") {
        return false;
    }
    if OBJECT_ATTRIBUTES.contains(&name) {
        return !matches!(value, Value::Object(object) if matches!(**object, Object::Namespace(_)) && name != "__class__");
    }
    match value {
        Value::List(_) => LIST_MUTATORS.contains(&name),
        Value::Dict(_) => DICT_MUTATORS.contains(&name),
        Value::Tuple(seq) if seq.is_group => matches!(name, "_asdict" | "_fields" | "_make" | "_replace"),
        Value::Object(object) => match &**object {
            Object::Iter { name: function, .. } => {
                Object::is_generator(function) && matches!(name, "gi_frame" | "gi_code")
            }
            Object::Macro(_) => {
                name.starts_with('_') && matches!(name, "_func" | "_environment" | "_argument_count" | "_invoke")
            }
            Object::Loop(_) => matches!(name, "_iterable" | "_iterator" | "_undefined" | "_recurse"),
            _ => false,
        },
        _ => false,
    }
}

impl Vm<'_> {
    /// Evaluates `value.name`.
    pub(crate) fn get_attr(&mut self, value: &Value, name: &str) -> Result<Value> {
        if value.is_undefined() && is_hidden(value, name) {
            return Ok(unsafe_attr(value, name));
        }
        value.defined()?;
        if let Some(found) = self.native_attr(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(found) = dict.map.get(name)
        {
            return Ok(found.clone());
        }
        Ok(Value::Undefined(Rc::new(Undefined::Attr { type_name: value.type_name(), name: name.into() })))
    }

    /// Evaluates `value[key]`.
    pub(crate) fn get_item(&mut self, value: &Value, key: &Value) -> Result<Value> {
        value.defined()?;
        let found = match value {
            Value::Dict(dict) => match check_hashable(key) {
                Ok(()) => {
                    self.budget.scan(key.weight() / 8)?;
                    dict.get(key).cloned()
                }
                Err(_) => None,
            },
            Value::List(seq) | Value::Tuple(seq) => {
                key.as_index().and_then(|index| position(index, seq.items.len())).map(|index| seq.items[index].clone())
            }
            Value::Range(range) => {
                key.as_index().and_then(|index| position(index, range.length)).and_then(|index| range.get(index))
            }
            Value::Str(text) => match key.as_index() {
                Some(index) => {
                    self.budget.scan(text.text.len())?;
                    let found = position(index, text.chars()).and_then(|index| text.text.chars().nth(index));
                    found.map(|character| Value::text(character.to_string(), text.safe))
                }
                None => None,
            },
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        if let Value::Slice(parts) = key {
            // In constant folding, slicing a value that cannot be sliced gives undefined instead of an error.
            match crate::ops::slice(self, value, parts) {
                Err(error) if self.folding && error.kind() == ErrorKind::Type => {}
                result => return result,
            }
        }
        if let Some(name) = key.as_str() {
            if let Some(found) = self.native_attr(value, name)? {
                return Ok(found);
            }
            return Ok(Value::Undefined(Rc::new(Undefined::Attr { type_name: value.type_name(), name: name.into() })));
        }
        let key = match key {
            Value::Int(index) => index.to_string(),
            other => format!("of type '{}'", other.type_name()),
        };
        Ok(Value::Undefined(Rc::new(Undefined::Element { type_name: value.type_name(), key })))
    }

    /// Looks up an attribute as Python's `getattr` does, without falling back to items.
    fn native_attr(&mut self, value: &Value, name: &str) -> Result<Option<Value>> {
        if is_hidden(value, name) {
            return Ok(Some(unsafe_attr(value, name)));
        }
        if has_method(value, name) {
            let method = Object::Method { receiver: value.clone(), name: name.into() };
            if method.depth() > crate::budget::MAX_VALUE_DEPTH {
                return Err(Error::limit(format!("{} nested values", crate::budget::MAX_VALUE_DEPTH)));
            }
            return Ok(Some(Value::Object(Rc::new(method))));
        }
        Ok(match value {
            Value::Bool(_) | Value::Int(_) | Value::Big(_) => match name {
                "real" | "numerator" => Some(Value::int(to_bigint(value).unwrap_or_default())),
                "imag" => Some(Value::Int(0)),
                "denominator" => Some(Value::Int(1)),
                _ => None,
            },
            Value::Float(number) => match name {
                "real" => Some(Value::Float(*number)),
                "imag" => Some(Value::Float(0.0)),
                _ => None,
            },
            Value::Tuple(seq) if seq.is_group => match name {
                "grouper" => seq.items.first().cloned(),
                "list" => seq.items.get(1).cloned(),
                _ => None,
            },
            Value::Range(range) => match name {
                "start" => Some(Value::Int(range.start)),
                "stop" => Some(Value::Int(range.stop)),
                "step" => Some(Value::Int(range.step)),
                _ => None,
            },
            Value::View(_, dict) if name == "mapping" => Some(Value::Dict(dict.clone())),
            Value::Object(object) => self.object_attr(object, name)?,
            _ => None,
        })
    }

    fn object_attr(&mut self, object: &Rc<Object>, name: &str) -> Result<Option<Value>> {
        Ok(match &**object {
            Object::Namespace(attributes) => attributes.borrow().get(name).cloned(),
            Object::Cycler { items, position } => match (name, items) {
                ("current", Value::Tuple(seq)) => seq.items.get(position.get()).cloned(),
                ("pos", _) => Some(Value::usize(position.get())),
                ("items", _) => Some(items.clone()),
                _ => None,
            },
            Object::Joiner { separator, used } => match name {
                "sep" => Some(separator.clone()),
                "used" => Some(Value::Bool(used.get())),
                _ => None,
            },
            Object::Macro(object) => {
                let uses = object.declared.uses;
                match name {
                    "name" => Some(object.declared.name.clone().map_or(Value::None, Value::str)),
                    "arguments" => {
                        let names = object.declared.params.iter().map(|(name, _)| Value::str(name.clone())).collect();
                        Some(Value::tuple(names, &mut self.budget)?)
                    }
                    "catch_kwargs" => Some(Value::Bool(uses.kwargs)),
                    "catch_varargs" => Some(Value::Bool(uses.varargs)),
                    "caller" => Some(Value::Bool(uses.caller)),
                    "explicit_caller" => {
                        Some(Value::Bool(object.declared.params.iter().any(|(name, _)| &**name == "caller")))
                    }
                    _ => None,
                }
            }
            Object::Loop(_) => self.loop_attr(object, name)?,
            Object::Template => self
                .blocks
                .iter()
                .find(|block| *block.name == *name)
                .map(|block| Value::Object(Rc::new(Object::Block(block.name.clone())))),
            Object::Block(block) => match name {
                "super" => Some(Value::undefined(format!("there is no parent block called '{block}'."))),
                "name" => Some(Value::str(block.clone())),
                _ => None,
            },
            _ => None,
        })
    }

    fn loop_attr(&mut self, object: &Rc<Object>, name: &str) -> Result<Option<Value>> {
        match name {
            "last" | "nextitem" => self.look_ahead(object)?,
            "length" | "revindex" | "revindex0" => self.measure_loop(object)?,
            _ => {}
        }
        let Object::Loop(state) = &**object else { return Ok(None) };
        let state =
            state.try_borrow().map_err(|_| Error::value("the loop cannot be used while it computes its next item"))?;
        let number = |number: usize| Some(Value::usize(number));
        let yielded = BigInt::from(state.yielded);
        let length = BigInt::from(state.length.unwrap_or_default());
        Ok(match name {
            "index" => number(state.yielded),
            "index0" => Some(Value::int(yielded - 1)),
            "first" => Some(Value::Bool(state.yielded == 1)),
            "last" => Some(Value::Bool(matches!(state.lookahead, Some(None)))),
            "length" => number(state.length.unwrap_or_default()),
            "revindex" => Some(Value::int(length - yielded + 1)),
            "revindex0" => Some(Value::int(length - yielded)),
            "depth" => number(state.depth),
            "depth0" => number(state.depth - 1),
            "previtem" if state.yielded == 1 => Some(Value::undefined("there is no previous item")),
            "previtem" => state.previous.clone(),
            "nextitem" => match &state.lookahead {
                Some(Some(item)) => Some(item.clone()),
                _ => Some(Value::undefined("there is no next item")),
            },
            _ => None,
        })
    }

    /// Advances a loop and returns its next item.
    pub(crate) fn advance_loop(&mut self, object: &Rc<Object>) -> Result<Option<Value>> {
        self.look_ahead_if(object, false)?;
        let Object::Loop(state) = &**object else { return Ok(None) };
        let mut state = state
            .try_borrow_mut()
            .map_err(|_| Error::value("the loop cannot be used while it computes its next item"))?;
        let Some(item) = state.lookahead.take().flatten() else { return Ok(None) };
        state.yielded += 1;
        state.previous = state.current.replace(item.clone());
        Ok(Some(item))
    }

    fn look_ahead(&mut self, object: &Rc<Object>) -> Result<()> {
        self.look_ahead_if(object, true)
    }

    /// Reads one item ahead, unless an item was read ahead already. Records the end of the iterator only if `keep_end`
    /// is set.
    fn look_ahead_if(&mut self, object: &Rc<Object>, keep_end: bool) -> Result<()> {
        let Object::Loop(state) = &**object else { return Ok(()) };
        let busy = |_| Error::value("the loop cannot be used while it computes its next item");
        let mut iter = {
            let mut state: std::cell::RefMut<'_, Loop> = state.try_borrow_mut().map_err(busy)?;
            if state.lookahead.is_some() {
                return Ok(());
            }
            std::mem::replace(&mut state.iter, crate::iter::Iter::Empty)
        };
        let item = iter.next(self)?;
        let mut state = state.try_borrow_mut().map_err(busy)?;
        state.iter = iter;
        if item.is_some() || keep_end {
            state.lookahead = Some(item);
        }
        Ok(())
    }

    /// Determines the length of a loop over an iterator by reading all remaining items.
    pub(crate) fn measure_loop(&mut self, object: &Rc<Object>) -> Result<()> {
        let Object::Loop(state) = &**object else { return Ok(()) };
        let busy = |_| Error::value("the loop cannot be used while it computes its next item");
        let iter = {
            let mut state = state.try_borrow_mut().map_err(busy)?;
            if state.length.is_some() {
                return Ok(());
            }
            std::mem::replace(&mut state.iter, crate::iter::Iter::Empty)
        };
        let rest = iter.collect(self)?;
        let mut state = state.try_borrow_mut().map_err(busy)?;
        let lookahead = usize::from(matches!(state.lookahead, Some(Some(_))));
        state.length = Some(state.yielded + lookahead + rest.len());
        state.iter = crate::iter::Iter::seq(Rc::new(crate::value::Seq::unchecked(rest)));
        Ok(())
    }
}

/// Resolves a Python index. Negative indices count from the end. Returns `None` if the index is out of range.
pub(crate) fn position(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(length as i64)? } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}
