//! Turns the views recorded by a program into tensors, after checking that the file contains all their elements.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use safetensors::Dtype;

use super::error::PickleFault;
use super::limits::MAX_NAME_BYTES;
use super::machine::limit;
use super::value::{Heap, Value, View};
use super::zip::Archive;

/// Maximum nesting depth of dictionaries.
const MAX_DEPTH: usize = 8;
/// Maximum number of dimensions of a tensor.
const MAX_RANK: usize = 16;

/// A tensor in a PyTorch file. Its values are not read before [`Self::bytes`] is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickleTensor {
    /// Name of the tensor: its keys in the nested dictionaries, joined by dots.
    pub name: String,
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape, with the axes in PyTorch's order.
    pub shape: Vec<usize>,
    /// Strides, in elements, one per dimension; `None` if the tensor is contiguous (row-major).
    strides: Option<Vec<usize>>,
    /// Byte range in the file from the first element to the last, including any gaps.
    range: Range<usize>,
}

impl PickleTensor {
    /// Returns the number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the size of all elements, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.num_elements() * item_bytes(self.dtype)
    }

    /// Returns the byte range in the file that contains the elements. If the tensor is contiguous, the range holds
    /// exactly its elements, in row-major order.
    pub fn byte_range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Returns whether the file stores the elements in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.strides.is_none()
    }

    /// Returns the elements in row-major order, as little-endian bytes. They are borrowed from `file` if the tensor is
    /// contiguous, and copied otherwise. `file` must be the content that was parsed. Returns `None` if `file` is too
    /// short.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let view = file.get(self.range.clone())?;
        let Some(strides) = &self.strides else {
            return Some(Cow::Borrowed(view));
        };
        Some(Cow::Owned(match item_bytes(self.dtype) {
            1 => gather::<1>(view, &self.shape, strides),
            2 => gather::<2>(view, &self.shape, strides),
            4 => gather::<4>(view, &self.shape, strides),
            _ => gather::<8>(view, &self.shape, strides),
        }))
    }
}

/// Returns the size of an element in bytes: 1, 2, 4 or 8 for every type on the allow-list.
fn item_bytes(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// Copies a view into row-major order. The view must have at least one element and one dimension.
fn gather<const ITEM: usize>(view: &[u8], shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let (items, _) = view.as_chunks::<ITEM>();
    let mut copy = Vec::with_capacity(shape.iter().product::<usize>() * ITEM);
    let (last, outer) = (shape.len() - 1, shape.len() - 1);
    let mut index = vec![0; outer];
    let mut start = 0; // start of the current row, in items
    loop {
        for column in 0..shape[last] {
            copy.extend_from_slice(&items[start + column * strides[last]]);
        }
        let Some(axis) = (0..outer).rev().find(|&axis| index[axis] + 1 < shape[axis]) else {
            return copy;
        };
        for axis in axis + 1..outer {
            start -= index[axis] * strides[axis];
            index[axis] = 0;
        }
        index[axis] += 1;
        start += strides[axis];
    }
}

/// Checks and lists all tensors of the dictionary that the program returned, in the order of the dictionary.
pub(super) fn list(heap: &Heap<'_>, archive: &Archive<'_>) -> Result<Vec<PickleTensor>, PickleFault> {
    let mut list = List {
        heap,
        archive,
        tensors: Vec::new(),
        names: HashSet::new(),
        visited: vec![false; heap.dicts.len()],
        used: HashSet::new(),
    };
    match heap.result {
        Some(Value::Dict(dict)) => list.add_dict("", dict, 1)?,
        other => {
            let found = other.as_ref().map_or("nothing", Value::kind);
            return Err(PickleFault::NotADictionary { found });
        }
    }
    let unused = || archive.storages().filter(|key| !list.used.contains(key));
    match unused().next() {
        Some(first) => Err(PickleFault::StorageUnused { count: unused().count(), first: first.to_owned() }),
        None => Ok(list.tensors),
    }
}

struct List<'a> {
    heap: &'a Heap<'a>,
    archive: &'a Archive<'a>,
    tensors: Vec<PickleTensor>,
    names: HashSet<String>,
    /// For each dictionary of the heap, whether it has been listed.
    visited: Vec<bool>,
    /// Keys of the storages that tensors use.
    used: HashSet<&'a str>,
}

impl List<'_> {
    /// Lists the tensors of dictionary `dict`. `prefix` is the name of the dictionary followed by a dot, or empty for
    /// the outermost dictionary.
    fn add_dict(&mut self, prefix: &str, dict: usize, depth: usize) -> Result<(), PickleFault> {
        if depth > MAX_DEPTH {
            return Err(limit("levels of nested dictionaries", depth, MAX_DEPTH));
        }
        // Each dictionary is listed only once: a shared or recursive one could produce exponentially many names.
        if std::mem::replace(&mut self.visited[dict], true) {
            let found = "a dictionary that also occurs elsewhere in the file";
            let name = prefix.strip_suffix('.').unwrap_or_default().to_owned();
            return Err(PickleFault::NotATensor { name, found });
        }
        let heap = self.heap;
        for (key, value) in &heap.dicts[dict].items {
            let length = prefix.len() + key.len();
            if length > MAX_NAME_BYTES {
                return Err(limit("bytes in the name of a tensor", length, MAX_NAME_BYTES));
            }
            let name = format!("{prefix}{key}");
            match value {
                Value::Dict(dict) => self.add_dict(&format!("{name}."), *dict, depth + 1)?,
                Value::Tensor(view) => self.add_tensor(name, &heap.views[*view])?,
                other => return Err(PickleFault::NotATensor { name, found: other.kind() }),
            }
        }
        Ok(())
    }

    fn add_tensor(&mut self, name: String, view: &View) -> Result<(), PickleFault> {
        if !self.names.insert(name.clone()) {
            return Err(PickleFault::DuplicateTensor { name });
        }
        let tensor = self.check(name, view)?;
        self.used.insert(self.heap.storages[view.storage].key);
        self.tensors.push(tensor);
        Ok(())
    }

    /// Checks that the storage of a view has the length that the program claims, and contains every element of the
    /// view.
    fn check(&self, name: String, view: &View) -> Result<PickleTensor, PickleFault> {
        let storage = &self.heap.storages[view.storage];
        let key = || storage.key.to_owned();
        let Some(entry) = self.archive.entry(&format!("data/{}", storage.key)) else {
            return Err(PickleFault::StorageMissing { name, key: key() });
        };
        let found = (entry.end - entry.start) as u64;
        let expected =
            u64::try_from(storage.len).ok().and_then(|len| len.checked_mul(storage.dtype.map_or(1, item_bytes) as u64));
        match expected {
            Some(expected) if expected == found => {}
            Some(expected) => return Err(PickleFault::StorageLength { name, key: key(), expected, found }),
            None => {
                let reason = format!("its storage \"data/{}\" has an invalid length of {}", key(), storage.len);
                return Err(PickleFault::View { name, reason });
            }
        }
        let item = item_bytes(view.dtype);
        let shape = self.heap.tuple(view.shape);
        let strides = self.heap.tuple(view.strides);
        match check_view(view.offset, shape, strides, (entry.end - entry.start) / item) {
            Ok(Fit { shape, strides, items }) => {
                let range = entry.start + items.start * item..entry.start + items.end * item;
                Ok(PickleTensor { name, dtype: view.dtype, shape, strides, range })
            }
            Err(reason) => Err(PickleFault::View { name, reason }),
        }
    }
}

/// A view that fits its storage.
struct Fit {
    shape: Vec<usize>,
    /// `None` if the elements are in row-major order without gaps.
    strides: Option<Vec<usize>>,
    /// Range in the storage from the first to the last element of the view, in elements.
    items: Range<usize>,
}

/// Checks that a view fits a storage of `capacity` elements. The error says why the view does not fit.
fn check_view(offset: i64, shape: &[Value<'_>], strides: &[Value<'_>], capacity: usize) -> Result<Fit, String> {
    let shape = non_negative("size", shape)?;
    let strides = non_negative("stride", strides)?;
    let offset = usize::try_from(offset).map_err(|_| format!("an offset of {offset} elements; expected 0 or more"))?;
    if shape.len() != strides.len() {
        return Err(format!("{} sizes and {} strides; expected as many sizes as strides", shape.len(), strides.len()));
    }
    let place = || format!("shape {shape:?} with strides {strides:?} from element {offset}");
    let outside = || format!("{} does not fit its storage of {capacity} elements", place());
    // The size in bytes must not overflow either. An element has at most 8 bytes.
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let elements = elements.filter(|elements| elements.checked_mul(8).is_some()).ok_or_else(outside)?;
    if offset > capacity {
        return Err(outside());
    }
    if elements == 0 {
        return Ok(Fit { shape, strides: None, items: offset..offset });
    }
    let reach = |reach: usize, (size, stride): (&usize, &usize)| reach.checked_add((size - 1).checked_mul(*stride)?);
    let last = shape.iter().zip(&strides).try_fold(offset, reach).filter(|&last| last < capacity);
    let last = last.ok_or_else(outside)?;
    if elements > capacity {
        return Err(format!("{} repeats some of {capacity} stored elements; save a `contiguous()` copy", place()));
    }

    let mut row_major = 1;
    let mut contiguous = true;
    for (&size, &stride) in shape.iter().zip(&strides).rev() {
        contiguous &= size == 1 || stride == row_major;
        row_major *= size;
    }
    Ok(Fit { shape, strides: (!contiguous).then_some(strides), items: offset..last + 1 })
}

/// Converts the values of a tuple to non-negative integers. Error messages call a value `what`.
fn non_negative(what: &str, values: &[Value<'_>]) -> Result<Vec<usize>, String> {
    if values.len() > MAX_RANK {
        return Err(format!("{} dimensions; at most {MAX_RANK} are allowed", values.len()));
    }
    let natural = |value: &Value<'_>| match value {
        Value::Int(int) => usize::try_from(*int).map_err(|_| format!("a {what} of {int}; expected 0 or more")),
        other => Err(format!("{} as a {what}; expected an integer", other.kind())),
    };
    values.iter().map(natural).collect()
}
