//! Calls of macros, methods and global functions.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexMap;

use crate::args::Args;
use crate::ast::Macro;
use crate::budget::MAX_RANGE;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::check_attribute;
use crate::iter::Iter;
use crate::key::{Key, order};
use crate::object::{Function, MacroObject, Object};
use crate::repr::to_str;
use crate::scope::Scope;
use crate::value::{Range, Value};
use crate::vm::Vm;

impl Vm<'_> {
    /// Calls a value, as `value(*args)` does in Python.
    pub(crate) fn call(&mut self, value: &Value, args: Args) -> Result<Value> {
        let Value::Object(object) = value.defined()? else {
            return Err(Error::type_error(format!("'{}' object is not callable", value.type_name())));
        };
        match &**object {
            Object::Macro(object) => self.call_macro(object, args),
            Object::Method { receiver, name } => self.call_method(receiver, name, args),
            Object::Function(function) => self.call_function(*function, args),
            Object::Joiner { separator, used } => {
                args.none("joiner")?;
                Ok(if used.replace(true) { separator.clone() } else { Value::str("") })
            }
            Object::Loop(state) => {
                let (recursive, depth) = match state.try_borrow() {
                    Ok(state) => (state.recursive.clone(), state.depth),
                    Err(_) => (None, 0),
                };
                let Some((statement, scope)) = recursive else {
                    let message = "the loop must have the 'recursive' marker to be called recursively";
                    return Err(Error::type_error(message));
                };
                let [items] = args.bind("loop", ["iterable"], 1)?;
                self.budget.enter()?;
                let text = self.loop_text(&statement, &scope, &items.unwrap_or(Value::None), depth + 1)?;
                self.budget.leave();
                self.buffered(text)
            }
            Object::Block(name) => {
                args.none("block")?;
                let block = self.blocks.iter().find(|block| block.name == *name).cloned();
                let Some(block) = block else { return Ok(Value::str("")) };
                self.budget.enter()?;
                self.out.push(String::new());
                let result = self.block(&block, &Scope::block(&self.root.clone()));
                let text = self.out.pop().unwrap_or_default();
                result?;
                self.budget.leave();
                self.buffered(text)
            }
            _ => Err(Error::type_error(format!("'{}' object is not callable", value.type_name()))),
        }
    }

    /// Calls a macro. Source: `jinja2.runtime.Macro.__call__`.
    #[inline(never)]
    fn call_macro(&mut self, object: &MacroObject, mut args: Args) -> Result<Value> {
        let declared = object.declared.clone();
        let name = declared.name.as_deref().unwrap_or("caller").to_owned();
        let Some(outer) = object.scope.borrow().clone() else {
            return Err(Error::value("the macro was called after the rendering ended"));
        };
        let scope = Scope::inside(&outer);
        let count = declared.params.len();
        let extra = args.positional.split_off(args.positional.len().min(count));
        let mut values: Vec<Option<Value>> = args.positional.drain(..).map(Some).collect();
        let explicit_caller = declared.params.iter().any(|(param, _)| &**param == "caller");
        let mut found_caller = values.len() == count && explicit_caller;
        for (param, _) in declared.params.iter().skip(values.len()) {
            values.push(args.take_named(param));
            found_caller |= &**param == "caller";
        }
        if declared.uses.caller && !found_caller {
            let caller = args.take_named("caller");
            scope.set(&"caller".into(), caller.unwrap_or_else(|| Value::undefined("No caller defined")));
        }
        if declared.uses.kwargs {
            let kwargs = args.named.drain(..).map(|(name, value)| (Key::str(name), value)).collect();
            scope.set(&"kwargs".into(), Value::dict(kwargs, &mut self.budget)?);
        } else if let Some((keyword, _)) = args.named.first() {
            return Err(Error::type_error(format!("macro '{name}' takes no keyword argument '{keyword}'")));
        }
        if declared.uses.varargs {
            scope.set(&"varargs".into(), Value::tuple(extra, &mut self.budget)?);
        } else if !extra.is_empty() {
            return Err(Error::type_error(format!("macro '{name}' takes not more than {count} argument(s)")));
        }
        self.budget.enter()?;
        let saved = (self.autoescape, self.volatile);
        (self.autoescape, self.volatile) = (object.autoescape.unwrap_or(self.autoescape), object.autoescape.is_none());
        let text = self.run_macro(&declared, values, &scope);
        (self.autoescape, self.volatile) = saved;
        let text = text?;
        self.budget.leave();
        self.buffered(text)
    }

    fn run_macro(&mut self, declared: &Macro, values: Vec<Option<Value>>, scope: &Rc<Scope>) -> Result<String> {
        // The default value of a parameter can use the preceding parameters.
        for ((param, default), value) in declared.params.iter().zip(values) {
            let value = match (value, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, scope)?,
                (None, None) => Value::undefined(format!("parameter '{param}' was not provided")),
            };
            scope.set(param, value);
        }
        self.capture(&declared.body, scope).map(|(text, _)| text)
    }

    fn call_function(&mut self, function: Function, args: Args) -> Result<Value> {
        match function {
            Function::Range => self.range(args),
            Function::Dict => {
                let map = self.build_dict(args)?;
                Value::dict(map, &mut self.budget)
            }
            Function::Namespace => {
                let attributes = self.build_dict(args)?;
                attributes.keys().filter_map(|key| key.0.as_str()).try_for_each(check_attribute)?;
                self.object(Object::Namespace(RefCell::new(attributes)))
            }
            Function::Cycler => {
                if let Some((name, _)) = args.named.first() {
                    return Err(Error::type_error(format!("cycler() got an unexpected keyword argument '{name}'")));
                }
                if args.positional.is_empty() {
                    return Err(Error::value("at least one item has to be provided"));
                }
                let items = Value::tuple(args.positional, &mut self.budget)?;
                self.object(Object::Cycler { items, position: Cell::new(0) })
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                let separator = separator.unwrap_or_else(|| Value::str(", "));
                self.object(Object::Joiner { separator, used: Cell::new(false) })
            }
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                let message = to_str(&message.unwrap_or(Value::None), &mut self.budget)?;
                Err(Error::new(ErrorKind::Raised, &*message))
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                let Some(Value::Str(format)) = format else {
                    return Err(Error::type_error("strftime_now takes a string"));
                };
                self.budget.build(format.text.len().saturating_mul(16))?;
                let text = self.now.strftime(&format.text);
                self.string(text)
            }
            Function::Lipsum => {
                Err(Error::new(ErrorKind::Unsupported, "lipsum is not supported: it generates random text"))
            }
        }
    }

    /// Creates a `range` with the length limit of the sandbox. Source: `jinja2.sandbox.safe_range`.
    fn range(&mut self, args: Args) -> Result<Value> {
        if !args.named.is_empty() {
            return Err(Error::type_error("range() takes no keyword arguments"));
        }
        let numbers = args.positional.iter().map(Value::index).collect::<Result<Vec<_>>>()?;
        let (start, stop, step) = match numbers[..] {
            [stop] => (0, stop, 1),
            [start, stop] => (start, stop, 1),
            [start, stop, step] => (start, stop, step),
            _ => return Err(Error::type_error(format!("range expected 1 to 3 arguments, got {}", numbers.len()))),
        };
        if step == 0 {
            return Err(Error::value("range() arg 3 must not be zero"));
        }
        let distance = match step > 0 {
            true => i128::from(stop) - i128::from(start),
            false => i128::from(start) - i128::from(stop),
        };
        let step_size = i128::from(step).abs();
        let length = usize::try_from((distance + step_size - 1).max(0) / step_size).unwrap_or(usize::MAX);
        let is_big = |number: &Value| matches!(number, Value::Big(_));
        if let [first, rest @ ..] = &args.positional[..]
            && length == 0
            && (is_big(first) || rest.first().is_some_and(is_big))
        {
            // `index` clamps integers to `i64`, so a start and a stop that differ may have become equal.
            let (start, stop) = rest.first().map_or((&Value::Int(0), first), |stop| (first, stop));
            let forward = order(start, stop, "<")?;
            if forward == Some(if step > 0 { Ordering::Less } else { Ordering::Greater }) {
                return Err(Error::limit("64 bits per number in one range"));
            }
        }
        if length > MAX_RANGE {
            return Err(Error::limit(format!("{MAX_RANGE} items in one range")));
        }
        Ok(Value::Range(Rc::new(Range { start, stop, step, length })))
    }

    /// Builds a dict as Python's `dict` does: from a dict or an iterable of pairs, and from keyword arguments.
    fn build_dict(&mut self, args: Args) -> Result<IndexMap<Key, Value>> {
        if args.positional.len() > 1 {
            return Err(Error::type_error(format!("dict expected at most 1 argument, got {}", args.positional.len())));
        }
        let mut map = IndexMap::new();
        match args.positional.first() {
            None => {}
            Some(Value::Dict(dict)) => {
                self.budget.scan(64 * dict.map.len())?;
                map.clone_from(&dict.map);
            }
            Some(pairs) => {
                let mut iter = Iter::new(pairs.defined()?)?;
                while let Some(pair) = iter.next(self)? {
                    self.budget.step()?;
                    let items = Iter::new(&pair)?.collect(self)?;
                    let [key, value] = <[Value; 2]>::try_from(items).map_err(|items| {
                        Error::value(format!(
                            "dictionary update sequence element has length {}; 2 is required",
                            items.len()
                        ))
                    })?;
                    map.insert(Key::new(key)?, value);
                }
            }
        }
        map.extend(args.named.into_iter().map(|(name, value)| (Key::str(name), value)));
        Ok(map)
    }

    /// Evaluates `dict.fromkeys`: builds a dict from an iterable of keys, all with the same value.
    pub(crate) fn dict_from_keys(&mut self, args: Args) -> Result<Value> {
        let [keys, value] = args.bind("fromkeys", ["/iterable", "/value"], 1)?;
        let value = value.unwrap_or(Value::None);
        let keys = Iter::new(&keys.unwrap_or(Value::None))?.collect(self)?;
        let map = keys.into_iter().map(|key| Ok((Key::new(key)?, value.clone()))).collect::<Result<_>>()?;
        Value::dict(map, &mut self.budget)
    }
}
