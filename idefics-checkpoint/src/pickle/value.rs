//! What a program can make.
//!
//! Values are small copies; what they refer to lies in the [`Heap`]. So a program can share and nest as it likes
//! without any reference counting, recursion or copying of contents, and a dictionary that holds itself is nothing
//! special.

use safetensors::Dtype;

use super::global::Global;

/// A value on the stack, in the memo, in a tuple or in a dictionary.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    Tuple(Tuple),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

impl Value<'_> {
    /// The value's kind, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a boolean",
            Value::Int(_) => "an integer",
            Value::Text(_) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dictionary",
            Value::Global(_) => "a name",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// The place of a tuple's values in the heap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuple {
    start: usize,
    len: usize,
}

/// A dictionary; the last of two equal keys does not replace the first, both are kept.
#[derive(Debug, Default)]
pub(super) struct Dict<'a> {
    pub(super) items: Vec<(&'a str, Value<'a>)>,
    /// An `OrderedDict`, which can have attributes.
    pub(super) ordered: bool,
}

/// A storage as the program describes it, not yet looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Name of its entry within `data/`.
    pub(super) key: &'a str,
    /// Element type; `None` for bytes.
    pub(super) dtype: Option<Dtype>,
    /// Elements.
    pub(super) len: i64,
}

/// A view of a storage as the program describes it, not yet checked.
#[derive(Debug)]
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// The first element, in elements.
    pub(super) offset: i64,
    pub(super) shape: Tuple,
    /// Elements from one index to the next, for each dimension.
    pub(super) strides: Tuple,
}

/// Everything that a program has made; the indices of [`Value`] are of these.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    values: Vec<Value<'a>>,
    pub(super) dicts: Vec<Dict<'a>>,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) views: Vec<View>,
    /// What the program returned.
    pub(super) result: Option<Value<'a>>,
}

impl<'a> Heap<'a> {
    /// The values of a tuple.
    pub(super) fn tuple(&self, Tuple { start, len }: Tuple) -> &[Value<'a>] {
        &self.values[start..start + len]
    }

    /// A new tuple.
    pub(super) fn new_tuple(&mut self, values: impl Iterator<Item = Value<'a>>) -> Tuple {
        let start = self.values.len();
        self.values.extend(values);
        Tuple { start, len: self.values.len() - start }
    }

    /// Adds a value to the end of `list` and returns its index.
    pub(super) fn push<T>(list: &mut Vec<T>, value: T) -> usize {
        list.push(value);
        list.len() - 1
    }
}
