//! Objects: values with state or behaviour, such as loops, macros and namespaces.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::ast::{For, Macro};
use crate::error::{Error, ErrorKind, Result};
use crate::iter::Iter;
use crate::key::Key;
use crate::scope::Scope;
use crate::value::Value;

/// Why a value is undefined. Source: `jinja2.runtime.Undefined`.
#[derive(Debug)]
pub(crate) enum Undefined {
    Name(Arc<str>),
    Attr {
        type_name: &'static str,
        name: Arc<str>,
    },
    Element {
        type_name: &'static str,
        key: String,
    },
    Hint(String),
    /// An attribute that the reference's sandbox hides.
    Unsafe {
        type_name: &'static str,
        name: Arc<str>,
    },
}

impl Undefined {
    /// Creates the error that is raised when the undefined value is used.
    pub(crate) fn error(&self) -> Error {
        let object =
            |type_name: &str| if type_name == "NoneType" { "None".to_owned() } else { format!("{type_name} object") };
        match self {
            Self::Name(name) => Error::new(ErrorKind::Undefined, format!("'{name}' is undefined")),
            Self::Attr { type_name, name } => {
                Error::new(ErrorKind::Undefined, format!("'{}' has no attribute '{name}'", object(type_name)))
            }
            Self::Element { type_name, key } => {
                Error::new(ErrorKind::Undefined, format!("{} has no element {key}", object(type_name)))
            }
            Self::Hint(hint) => Error::new(ErrorKind::Undefined, hint.clone()),
            Self::Unsafe { type_name, name } => Error::new(
                ErrorKind::Security,
                format!("access to attribute '{name}' of '{type_name}' object is unsafe"),
            ),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Object {
    Namespace(RefCell<IndexMap<Key, Value>>),
    Cycler {
        items: Value,
        position: Cell<usize>,
    },
    Joiner {
        separator: Value,
        used: Cell<bool>,
    },
    Loop(RefCell<Loop>),
    Macro(MacroObject),
    /// A generator or iterator, which can be read once. `name` is the Python type of the iterator, or the Python
    /// function that creates the generator.
    Iter {
        iter: RefCell<Iter>,
        name: &'static str,
    },
    /// A bound method.
    Method {
        receiver: Value,
        name: Arc<str>,
    },
    Function(Function),
    /// The variable `self`. Its attributes are the blocks of the template.
    Template,
    /// A block of the template, for example `self.title`. Calling it renders the block.
    Block(Arc<str>),
}

/// The global functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Range,
    Dict,
    Lipsum,
    Cycler,
    Joiner,
    Namespace,
    RaiseException,
    StrftimeNow,
}

impl Function {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "range" => Self::Range,
            "dict" => Self::Dict,
            "lipsum" => Self::Lipsum,
            "cycler" => Self::Cycler,
            "joiner" => Self::Joiner,
            "namespace" => Self::Namespace,
            "raise_exception" => Self::RaiseException,
            "strftime_now" => Self::StrftimeNow,
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub(crate) struct MacroObject {
    pub(crate) declared: Arc<Macro>,
    /// Whether autoescape is on where the macro is defined. `None` if that depends on a variable. The setting at the
    /// call then applies.
    pub(crate) autoescape: Option<bool>,
    /// The scope in which the macro is defined. Cleared when rendering ends.
    pub(crate) scope: RefCell<Option<Rc<Scope>>>,
}

/// The state of a loop, which templates access as `loop`. Source: `jinja2.runtime.LoopContext`.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) iter: Iter,
    /// Number of items, if known.
    pub(crate) length: Option<usize>,
    /// The item that was read ahead. `None` if no item was read ahead, `Some(None)` if there are no more items.
    pub(crate) lookahead: Option<Option<Value>>,
    pub(crate) current: Option<Value>,
    pub(crate) previous: Option<Value>,
    /// Number of items yielded so far.
    pub(crate) yielded: usize,
    pub(crate) last_changed: Option<Vec<Value>>,
    pub(crate) depth: usize,
    /// The statement and its scope if the loop is recursive. `loop(…)` runs the statement again.
    pub(crate) recursive: Option<(Arc<For>, Rc<Scope>)>,
}

impl Object {
    /// Whether `name` is the Python function of a generator, rather than the type of an iterator.
    pub(crate) fn is_generator(name: &str) -> bool {
        name.contains("do_") || name == "select_or_reject"
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "TemplateNamespace",
            Self::Cycler { .. } => "Cycler",
            Self::Joiner { .. } => "Joiner",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Iter { name, .. } if Self::is_generator(name) => "generator",
            Self::Iter { name, .. } => name,
            Self::Method { .. } => "builtin_function_or_method",
            Self::Function(Function::Dict) => "TemplateDict",
            Self::Function(_) => "function",
            Self::Template => "TemplateReference",
            Self::Block(_) => "BlockReference",
        }
    }

    /// Returns the nesting depth of the value. Objects that are cleared when rendering ends count as 0.
    pub(crate) fn depth(&self) -> u32 {
        match self {
            Self::Method { receiver, .. } => receiver.depth() + 1,
            _ => 0,
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Loop(state) => state.try_borrow().ok().and_then(|state| state.length).is_none_or(|length| length > 0),
            _ => true,
        }
    }

    pub(crate) fn length(&self) -> Result<usize> {
        match self {
            Self::Loop(state) => match state.try_borrow().ok().and_then(|state| state.length) {
                Some(length) => Ok(length),
                None => Err(Error::type_error("the length of this loop is unknown; use loop.length")),
            },
            _ => Err(Error::type_error(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    pub(crate) fn is_callable(&self) -> bool {
        match self {
            Self::Namespace(_) | Self::Cycler { .. } | Self::Iter { .. } | Self::Template => false,
            Self::Joiner { .. }
            | Self::Loop(_)
            | Self::Macro(_)
            | Self::Method { .. }
            | Self::Function(_)
            | Self::Block(_) => true,
        }
    }

    pub(crate) fn equals(self: &Rc<Self>, other: &Rc<Self>) -> bool {
        Rc::ptr_eq(self, other)
            || match (&**self, &**other) {
                (Self::Function(left), Self::Function(right)) => left == right,
                (Self::Method { receiver, name }, Self::Method { receiver: other, name: other_name }) => {
                    name == other_name && crate::key::is_same(receiver, other)
                }
                _ => false,
            }
    }

    /// Drops all references held by the object, so that reference cycles are freed when rendering ends.
    pub(crate) fn clear(&self) {
        match self {
            Self::Namespace(attributes) => drop(attributes.take()),
            Self::Loop(state) => {
                if let Ok(mut state) = state.try_borrow_mut() {
                    state.iter = Iter::Empty;
                    state.recursive = None;
                    (state.current, state.previous, state.lookahead, state.last_changed) = (None, None, None, None);
                }
            }
            Self::Macro(object) => drop(object.scope.take()),
            Self::Iter { iter, .. } => drop(iter.replace(Iter::Empty)),
            _ => {}
        }
    }
}
