//! The values that a program can create.
//!
//! Values are small and `Copy`; the objects they refer to are in the [`Heap`]. A program can therefore share and nest
//! objects freely without reference counting, recursion or copies, and a dictionary that contains itself needs no
//! special treatment.

use safetensors::Dtype;

use super::global::Global;

/// A value on the stack, in the memo, in a tuple or in a dictionary.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Str(&'a str),
    Tuple(Tuple),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

impl Value<'_> {
    /// Returns the kind of value, for error messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool => "a boolean",
            Value::Int(_) => "an integer",
            Value::Str(_) => "a string",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dictionary",
            Value::Global(_) => "a name",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// A tuple: the range of its values in the heap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuple {
    start: usize,
    len: usize,
}

/// A dictionary. Items with equal keys are all kept, so that duplicates can be detected.
#[derive(Debug, Default)]
pub(super) struct Dict<'a> {
    pub(super) items: Vec<(&'a str, Value<'a>)>,
    /// Whether the dictionary is an `OrderedDict`, which can have attributes.
    pub(super) ordered: bool,
}

/// A storage as described by the program, not yet looked up in the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Key of the storage: its archive entry is `data/<key>`.
    pub(super) key: &'a str,
    /// Element type; `None` for untyped bytes.
    pub(super) dtype: Option<Dtype>,
    /// Number of elements claimed by the program, which may be negative.
    pub(super) len: i64,
}

/// A view of a storage as described by the program, not yet checked.
#[derive(Debug)]
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// Offset of the first element in the storage, in elements.
    pub(super) offset: i64,
    pub(super) shape: Tuple,
    /// Strides, in elements, one per dimension.
    pub(super) strides: Tuple,
}

/// All objects that a program has created. The indices in a [`Value`] refer to these lists.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    values: Vec<Value<'a>>,
    pub(super) dicts: Vec<Dict<'a>>,
    pub(super) storages: Vec<Storage<'a>>,
    pub(super) views: Vec<View>,
    /// The value that the program returned.
    pub(super) result: Option<Value<'a>>,
}

impl<'a> Heap<'a> {
    /// Returns the values of a tuple.
    pub(super) fn tuple(&self, Tuple { start, len }: Tuple) -> &[Value<'a>] {
        &self.values[start..start + len]
    }

    /// Adds a tuple with these values.
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
