//! The values that a template can use: a subset of Python's types.
//!
//! Every value is cheap to clone. Lists and dicts are immutable, because the sandbox of the reference forbids changes.
//! They store their nesting depth and total size. Traversing them therefore never takes longer, or recurses deeper,
//! than the limits allow.

use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;
use num_bigint::BigInt;
use num_traits::{ToPrimitive, Zero};

use crate::ast::Const;
use crate::budget::{Budget, MAX_VALUE_DEPTH};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::object::{Object, Undefined};

/// A string, and whether it counts as escaped HTML (`markupsafe.Markup`).
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) text: Arc<str>,
    pub(crate) safe: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Undefined(Rc<Undefined>),
    None,
    Bool(bool),
    Int(i64),
    /// An integer outside the range of `i64`.
    Big(Arc<BigInt>),
    Float(f64),
    Str(Text),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    View(View, Rc<Dict>),
    Range(Rc<Range>),
    Slice(Rc<[Value; 3]>),
    Object(Rc<Object>),
}

/// The views returned by `keys()`, `values()` and `items()` of a dict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Keys,
    Values,
    Items,
}

#[derive(Debug, Default)]
pub(crate) struct Seq {
    pub(crate) items: Vec<Value>,
    /// Total size of the items in bytes, see [`Value::weight`].
    pub(crate) weight: usize,
    /// Nesting depth, see [`Value::depth`].
    pub(crate) depth: u32,
    /// Whether this is a pair returned by `groupby`. Its items can be accessed as `grouper` and `list`.
    pub(crate) is_group: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Dict {
    pub(crate) map: IndexMap<Key, Value>,
    /// Total size of the keys and values in bytes, see [`Value::weight`].
    pub(crate) weight: usize,
    /// Nesting depth, see [`Value::depth`].
    pub(crate) depth: u32,
}

/// A range of integers. All items and the step fit an `i64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: i64,
    pub(crate) stop: i64,
    pub(crate) step: i64,
    pub(crate) length: usize,
}

impl Range {
    pub(crate) fn get(&self, index: usize) -> Option<Value> {
        (index < self.length).then(|| Value::Int(self.start + self.step * index as i64))
    }
}

impl Text {
    pub(crate) fn chars(&self) -> usize {
        match self.text.is_ascii() {
            true => self.text.len(),
            false => self.text.chars().count(),
        }
    }
}

impl Value {
    pub(crate) fn str(text: impl Into<Arc<str>>) -> Self {
        Self::Str(Text { text: text.into(), safe: false })
    }

    pub(crate) fn safe(text: impl Into<Arc<str>>) -> Self {
        Self::Str(Text { text: text.into(), safe: true })
    }

    /// Creates a string. `safe` says whether it is escaped HTML.
    pub(crate) fn text(text: impl Into<Arc<str>>, safe: bool) -> Self {
        Self::Str(Text { text: text.into(), safe })
    }

    pub(crate) fn int(number: impl Into<BigInt>) -> Self {
        let number = number.into();
        match number.to_i64() {
            Some(number) => Self::Int(number),
            None => Self::Big(Arc::new(number)),
        }
    }

    pub(crate) fn usize(number: usize) -> Self {
        i64::try_from(number).map_or_else(|_| Self::int(number), Self::Int)
    }

    pub(crate) fn from_const(value: &Const) -> Self {
        match value {
            Const::None => Self::None,
            Const::Bool(value) => Self::Bool(*value),
            Const::Int(number) => Self::Int(*number),
            Const::Big(number) => Self::Big(number.clone()),
            Const::Float(number) => Self::Float(*number),
            Const::Str(text) => Self::str(text.clone()),
        }
    }

    pub(crate) fn undefined_name(name: &str) -> Self {
        Self::Undefined(Rc::new(Undefined::Name(name.into())))
    }

    pub(crate) fn undefined(hint: impl Into<String>) -> Self {
        Self::Undefined(Rc::new(Undefined::Hint(hint.into())))
    }

    /// Creates a list. Counts the size of the list itself, and checks its total size and depth.
    pub(crate) fn list(items: Vec<Self>, budget: &mut Budget) -> Result<Self> {
        Ok(Self::List(Rc::new(Seq::new(items, budget)?)))
    }

    pub(crate) fn tuple(items: Vec<Self>, budget: &mut Budget) -> Result<Self> {
        Ok(Self::Tuple(Rc::new(Seq::new(items, budget)?)))
    }

    pub(crate) fn dict(map: IndexMap<Key, Self>, budget: &mut Budget) -> Result<Self> {
        Ok(Self::Dict(Rc::new(Dict::new(map, budget)?)))
    }

    /// Estimates the size of the value with all nested values, in bytes. Shared values count every time they occur.
    pub(crate) fn weight(&self) -> usize {
        16 + match self {
            Self::Str(text) => text.text.len(),
            Self::Big(number) => number.bits() as usize / 8,
            Self::List(seq) | Self::Tuple(seq) => seq.weight,
            Self::Dict(dict) | Self::View(_, dict) => dict.weight,
            Self::Range(range) => range.length,
            Self::Object(_) => 64,
            _ => 0,
        }
    }

    /// Returns the nesting depth: 0 for scalars, 1 for a flat list.
    pub(crate) fn depth(&self) -> u32 {
        match self {
            Self::List(seq) | Self::Tuple(seq) => seq.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Slice(parts) => parts.iter().map(Self::depth).max().unwrap_or(0) + 1,
            Self::Object(object) => object.depth(),
            _ => 0,
        }
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(crate) fn as_text(&self) -> Option<&Text> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        self.as_text().map(|text| &*text.text)
    }

    pub(crate) fn is_safe(&self) -> bool {
        self.as_text().is_some_and(|text| text.safe)
    }

    /// Whether the value is true by Python's `bool`.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Big(number) => !number.is_zero(),
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.text.is_empty(),
            Self::List(seq) | Self::Tuple(seq) => !seq.items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.map.is_empty(),
            Self::Range(range) => range.length > 0,
            Self::Slice(_) => true,
            Self::Object(object) => object.is_true(),
        }
    }

    /// Returns the name of the type in Python.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) if text.safe => "Markup",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(seq) if seq.is_group => "_GroupTuple",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Slice(_) => "slice",
            Self::Object(object) => object.type_name(),
        }
    }

    /// Returns the value, or an error if it is undefined.
    pub(crate) fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(undefined) => Err(undefined.error()),
            _ => Ok(self),
        }
    }

    /// Returns the length of the value, as Python's `len` does.
    pub(crate) fn length(&self) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) => Ok(text.chars()),
            Self::List(seq) | Self::Tuple(seq) => Ok(seq.items.len()),
            Self::Dict(dict) | Self::View(_, dict) => Ok(dict.map.len()),
            Self::Range(range) => Ok(range.length),
            Self::Object(object) => object.length(),
            _ => Err(Error::type_error(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    /// Returns the value of an integer or bool, clamped to `i64`, and `None` for other types. Corresponds to Python's
    /// `__index__`.
    pub(crate) fn as_index(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(value) => Some(i64::from(*value)),
            // The integer exceeds any length, so only its sign matters.
            Self::Big(number) => Some(if **number < BigInt::zero() { i64::MIN } else { i64::MAX }),
            _ => None,
        }
    }

    /// Like `as_index`, but other types give the error that Python raises.
    pub(crate) fn index(&self) -> Result<i64> {
        self.defined()?;
        self.as_index().ok_or_else(|| {
            Error::type_error(format!("'{}' object cannot be interpreted as an integer", self.type_name()))
        })
    }

    /// Returns the truth value of an argument that Python parses as a C `int`.
    pub(crate) fn flag(&self) -> Result<bool> {
        match i32::try_from(self.index()?) {
            Ok(flag) => Ok(flag != 0),
            Err(_) => Err(Error::value("Python int too large to convert to C int")),
        }
    }
}

impl Seq {
    fn new(items: Vec<Value>, budget: &mut Budget) -> Result<Self> {
        budget.scan(16 + 24 * items.len())?;
        let seq = Self::unchecked(items);
        check(seq.depth, seq.weight, budget)?;
        Ok(seq)
    }

    /// Creates a sequence without checking the limits. Used for parts of an existing sequence and for the context.
    pub(crate) fn unchecked(items: Vec<Value>) -> Self {
        let weight = items.iter().map(Value::weight).fold(0, usize::saturating_add);
        let depth = items.iter().map(Value::depth).max().unwrap_or(0) + 1;
        Self { items, weight, depth, is_group: false }
    }

    /// Creates a pair that the filter `groupby` returns.
    pub(crate) fn group(items: Vec<Value>, budget: &mut Budget) -> Result<Self> {
        Ok(Self { is_group: true, ..Self::new(items, budget)? })
    }
}

impl Dict {
    fn new(map: IndexMap<Key, Value>, budget: &mut Budget) -> Result<Self> {
        budget.scan(16 + 64 * map.len())?;
        let dict = Self::unchecked(map);
        check(dict.depth, dict.weight, budget)?;
        Ok(dict)
    }

    /// Creates a dict without checking the limits, see [`Seq::unchecked`].
    pub(crate) fn unchecked(map: IndexMap<Key, Value>) -> Self {
        let weights = map.iter().map(|(key, value)| key.0.weight().saturating_add(value.weight()));
        let depths = map.iter().map(|(key, value)| key.0.depth().max(value.depth()));
        let (weight, depth) = (weights.fold(0, usize::saturating_add), depths.max().unwrap_or(0) + 1);
        Self { map, weight, depth }
    }

    pub(crate) fn get(&self, key: &Value) -> Option<&Value> {
        match key {
            Value::Str(text) => self.map.get(&*text.text),
            key => self.map.get(&Key(key.clone())),
        }
    }
}

fn check(depth: u32, weight: usize, budget: &Budget) -> Result<()> {
    match depth > MAX_VALUE_DEPTH {
        true => Err(Error::limit(format!("{MAX_VALUE_DEPTH} nested values"))),
        false => budget.check_value(weight),
    }
}
