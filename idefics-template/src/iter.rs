//! Iterators of values, including the lazy iterators of `map` and `select`.

use std::rc::Rc;
use std::sync::Arc;

use crate::args::Args;
use crate::error::{Error, Result};
use crate::object::Object;
use crate::value::{Dict, Range, Seq, Text, Value, View};
use crate::vm::Vm;

#[derive(Debug)]
pub(crate) enum Iter {
    Empty,
    /// The items of `seq` in the range `next..end`, read from the end if `reversed` is set.
    Items {
        seq: Rc<Seq>,
        next: usize,
        end: usize,
        reversed: bool,
    },
    Chars {
        text: Text,
        next: usize,
        end: usize,
        reversed: bool,
    },
    View {
        view: View,
        dict: Rc<Dict>,
        next: usize,
        end: usize,
        reversed: bool,
    },
    Range {
        range: Rc<Range>,
        next: usize,
        end: usize,
        reversed: bool,
    },
    Lazy(Box<Lazy>),
    /// A generator that raises an exception when it is read.
    Fails(Error),
    /// An iterator object. Other expressions may read from it too.
    Shared(Rc<Object>),
}

/// An iterator that applies a filter to each item when the item is read.
#[derive(Debug)]
pub(crate) struct Lazy {
    pub(crate) source: Iter,
    pub(crate) step: LazyStep,
}

#[derive(Debug)]
pub(crate) enum LazyStep {
    /// `map` with a filter name and the filter's arguments.
    Filter(Arc<str>, Args),
    /// `map(attribute=…, default=…)`: the attribute path, and the value for missing attributes.
    Attribute(Vec<Value>, Option<Value>),
    /// `select`, `reject`, `selectattr` and `rejectattr`: the attribute to test, the test (truthiness if `None`), and
    /// whether to keep the items for which the test fails.
    Select { attribute: Vec<Value>, test: Option<(Arc<str>, Args)>, rejects: bool },
}

impl Iter {
    pub(crate) fn seq(seq: Rc<Seq>) -> Self {
        let end = seq.items.len();
        Self::Items { seq, next: 0, end, reversed: false }
    }

    /// Creates an iterator over a value, as Python's `iter` does.
    pub(crate) fn new(value: &Value) -> Result<Self> {
        Self::directed(value, false).ok_or_else(|| match value {
            Value::Undefined(undefined) => undefined.error(),
            _ => Error::type_error(format!("'{}' object is not iterable", value.type_name())),
        })
    }

    /// Creates an iterator over a value in reverse order, as Python's `reversed` does.
    pub(crate) fn reversed(value: &Value) -> Result<Self> {
        value.defined()?;
        let shared = matches!(value, Value::Object(_));
        Self::directed(value, true)
            .filter(|_| !shared)
            .ok_or_else(|| Error::type_error(format!("'{}' object is not reversible", value.type_name())))
    }

    fn directed(value: &Value, reversed: bool) -> Option<Self> {
        Some(match value {
            Value::Undefined(_) => Self::Empty,
            Value::List(seq) | Value::Tuple(seq) => {
                Self::Items { seq: seq.clone(), next: 0, end: seq.items.len(), reversed }
            }
            Value::Str(text) => Self::Chars { text: text.clone(), next: 0, end: text.text.len(), reversed },
            Value::Dict(dict) => {
                Self::View { view: View::Keys, dict: dict.clone(), next: 0, end: dict.map.len(), reversed }
            }
            Value::View(view, dict) => {
                Self::View { view: *view, dict: dict.clone(), next: 0, end: dict.map.len(), reversed }
            }
            Value::Range(range) => Self::Range { range: range.clone(), next: 0, end: range.length, reversed },
            Value::Object(object) if matches!(**object, Object::Iter { .. }) => Self::Shared(object.clone()),
            _ => return None,
        })
    }

    pub(crate) fn next(&mut self, vm: &mut Vm) -> Result<Option<Value>> {
        let step = |next: &mut usize, end: &mut usize, reversed: bool| {
            if *next >= *end {
                return None;
            }
            if reversed {
                *end -= 1;
                return Some(*end);
            }
            *next += 1;
            Some(*next - 1)
        };
        vm.budget.scan(8)?;
        Ok(match self {
            Self::Empty => None,
            Self::Fails(error) => return Err(error.clone()),
            Self::Items { seq, next, end, reversed } => {
                step(next, end, *reversed).and_then(|index| seq.items.get(index).cloned())
            }
            Self::Range { range, next, end, reversed } => step(next, end, *reversed).and_then(|index| range.get(index)),
            Self::View { view, dict, next, end, reversed } => match step(next, end, *reversed) {
                Some(index) => match dict.map.get_index(index) {
                    Some((key, value)) => Some(match view {
                        View::Keys => key.0.clone(),
                        View::Values => value.clone(),
                        View::Items => Value::tuple(vec![key.0.clone(), value.clone()], &mut vm.budget)?,
                    }),
                    None => None,
                },
                None => None,
            },
            Self::Chars { text, next, end, reversed } => {
                let rest = &text.text[*next..*end];
                let character = if *reversed { rest.chars().next_back() } else { rest.chars().next() };
                let Some(character) = character else { return Ok(None) };
                match reversed {
                    true => *end -= character.len_utf8(),
                    false => *next += character.len_utf8(),
                }
                let mut buffer = [0; 4];
                Some(Value::str(&*character.encode_utf8(&mut buffer)))
            }
            Self::Lazy(lazy) => return lazy.next(vm),
            Self::Shared(object) => {
                let Object::Iter { iter, .. } = &**object else { return Ok(None) };
                let Ok(mut taken) = iter.try_borrow_mut().map(|mut iter| std::mem::replace(&mut *iter, Self::Empty))
                else {
                    return Err(Error::value("generator already executing"));
                };
                vm.budget.enter()?;
                let item = taken.next(vm);
                vm.budget.leave();
                if matches!(item, Ok(Some(_))) {
                    iter.replace(taken);
                }
                return item;
            }
        })
    }

    /// Reads all remaining items.
    pub(crate) fn collect(mut self, vm: &mut Vm) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut weight = 0;
        while let Some(item) = self.next(vm)? {
            vm.budget.step()?;
            vm.budget.scan(24)?;
            weight += 24;
            vm.budget.check_value(weight)?;
            items.push(item);
        }
        Ok(items)
    }
}

impl Lazy {
    fn next(&mut self, vm: &mut Vm) -> Result<Option<Value>> {
        loop {
            let Some(item) = self.source.next(vm)? else { return Ok(None) };
            vm.budget.step()?;
            match &self.step {
                LazyStep::Filter(name, args) => return vm.call_filter(name, item, args.clone()).map(Some),
                LazyStep::Attribute(parts, default) => return vm.attribute(&item, parts, default.as_ref()).map(Some),
                LazyStep::Select { attribute, test, rejects } => {
                    let tested = vm.attribute(&item, attribute, None)?;
                    let holds = match test {
                        Some((name, args)) => vm.call_test(name, &tested, args.clone())?,
                        None => tested.is_true(),
                    };
                    if holds != *rejects {
                        return Ok(Some(item));
                    }
                }
            }
        }
    }
}
