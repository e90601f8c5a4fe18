//! Calls that a pickle program may make. They create storages, tensors, parameters and ordered dictionaries.

use super::error::PickleFault;
use super::global::Global;
use super::limits::{MAX_NAME_BYTES, MAX_TENSORS};
use super::machine::{Machine, limit};
use super::value::{Heap, Storage, Value, View};

impl<'a> Machine<'a> {
    /// Executes `BINPERSID`: loads a storage described by `("storage", class, key, device, number of elements)`.
    ///
    /// The device is ignored, because it only says where the tensor was when it was saved.
    pub(super) fn load_storage(&mut self) -> Result<(), PickleFault> {
        let id = self.pop()?;
        let storage = match self.fields(id) {
            [
                Value::Str("storage"),
                Value::Global(Global::Storage(dtype)),
                Value::Str(key),
                Value::Str(_device),
                Value::Int(len),
            ] => Storage { key, dtype: *dtype, len: *len },
            fields => {
                let expected = "(\"storage\", a storage class, a string, a string, an integer)";
                return Err(self.fault(format!("a storage described by {}; expected {expected}", kinds(fields))));
            }
        };
        if storage.key.len() > MAX_NAME_BYTES {
            return Err(limit("bytes in the key of a storage", storage.key.len(), MAX_NAME_BYTES));
        }
        let index = match self.storages.get(storage.key) {
            None => {
                let index = self.heap.storages.len();
                self.storages.insert(storage.key, index);
                Heap::push(&mut self.heap.storages, storage)
            }
            Some(&index) if self.heap.storages[index] == storage => index,
            // The type of an empty storage is irrelevant: PyTorch lets tensors of several types share an empty storage.
            Some(&index) if self.heap.storages[index].len == 0 && storage.len == 0 => {
                Heap::push(&mut self.heap.storages, storage)
            }
            Some(&index) => {
                let known = &self.heap.storages[index];
                if known.dtype == storage.dtype {
                    let (one, other) = (known.len, storage.len);
                    let reason = format!(
                        "storage {:?} has {other} elements here, but {one} elements earlier in the file",
                        storage.key
                    );
                    return Err(self.fault(reason));
                }
                let (first, second) = (known.dtype, storage.dtype);
                return Err(PickleFault::StorageType { key: storage.key.to_owned(), first, second });
            }
        };
        self.push(Value::Storage(index))
    }

    /// Executes `REDUCE`: calls a global. No other opcode can call anything.
    pub(super) fn call(&mut self) -> Result<(), PickleFault> {
        let arguments = self.pop()?;
        match self.pop()? {
            Value::Global(Global::OrderedDict) => match self.fields(arguments) {
                [] if matches!(arguments, Value::Tuple(_)) => self.push_dict(true),
                fields => Err(self.fault(format!("an OrderedDict with arguments {}; expected ()", kinds(fields)))),
            },
            Value::Global(Global::RebuildTensorV2) => self.rebuild_tensor_v2(arguments),
            Value::Global(Global::RebuildTensorV3) => self.rebuild_tensor_v3(arguments),
            Value::Global(Global::RebuildParameter) => match *self.fields(arguments) {
                [Value::Tensor(view), Value::Bool, Value::Dict(hooks)] if self.is_empty(hooks) => {
                    self.push(Value::Tensor(view))
                }
                ref fields => Err(self.arguments_fault("(a tensor, a boolean, no hooks)", fields)),
            },
            Value::Global(other) => Err(self.call_fault(format!("{other:?}"))),
            other => Err(self.call_fault(other.kind().to_owned())),
        }
    }

    fn rebuild_tensor_v2(&mut self, arguments: Value<'a>) -> Result<(), PickleFault> {
        let view = match *self.fields(arguments) {
            [
                Value::Storage(storage),
                Value::Int(offset),
                Value::Tuple(shape),
                Value::Tuple(strides),
                Value::Bool,
                Value::Dict(hooks),
            ] if self.is_empty(hooks) => {
                let Some(dtype) = self.heap.storages[storage].dtype else {
                    return Err(self.fault("a tensor without an element type in an untyped storage"));
                };
                View { storage, dtype, offset, shape, strides }
            }
            // A seventh argument is rejected too. It marks conjugate and negated views, whose elements differ from
            // those of the storage.
            ref fields => {
                let expected = "(a typed storage, an integer, a tuple, a tuple, a boolean, no hooks)";
                return Err(self.arguments_fault(expected, fields));
            }
        };
        self.push_view(view)
    }

    fn rebuild_tensor_v3(&mut self, arguments: Value<'a>) -> Result<(), PickleFault> {
        let view = match *self.fields(arguments) {
            [
                Value::Storage(storage),
                Value::Int(offset),
                Value::Tuple(shape),
                Value::Tuple(strides),
                Value::Bool,
                Value::Dict(hooks),
                Value::Global(Global::Dtype(dtype)),
            ] if self.is_empty(hooks) && self.heap.storages[storage].dtype.is_none() => {
                View { storage, dtype, offset, shape, strides }
            }
            ref fields => {
                let expected = "(an untyped storage, an integer, a tuple, a tuple, a boolean, no hooks, a type)";
                return Err(self.arguments_fault(expected, fields));
            }
        };
        self.push_view(view)
    }

    fn push_view(&mut self, view: View) -> Result<(), PickleFault> {
        if self.heap.views.len() == MAX_TENSORS {
            return Err(limit("tensors", MAX_TENSORS + 1, MAX_TENSORS));
        }
        let view = Heap::push(&mut self.heap.views, view);
        self.push(Value::Tensor(view))
    }

    /// Executes `BUILD`: sets the attributes of an ordered dictionary. The only attribute accepted is `_metadata`, in
    /// which `state_dict()` stores the versions of the modules. It is discarded.
    pub(super) fn set_attributes(&mut self) -> Result<(), PickleFault> {
        let state = self.pop()?;
        let object = self.pop()?;
        match (object, state) {
            (Value::Dict(dict), Value::Dict(state))
                if self.heap.dicts[dict].ordered
                    && matches!(self.heap.dicts[state].items[..], [("_metadata", Value::Dict(_))]) =>
            {
                self.push(object)
            }
            _ => {
                let (object, state) = (object.kind(), state.kind());
                let expected = "an OrderedDict with the attribute `_metadata` alone";
                Err(self.fault(format!("{object} with {state} as its attributes; expected {expected}")))
            }
        }
    }

    /// Returns the values of a tuple, or an empty slice for any other value.
    fn fields(&self, value: Value<'a>) -> &[Value<'a>] {
        match value {
            Value::Tuple(tuple) => self.heap.tuple(tuple),
            _ => &[],
        }
    }

    fn is_empty(&self, dict: usize) -> bool {
        self.heap.dicts[dict].items.is_empty()
    }

    fn arguments_fault(&self, expected: &str, fields: &[Value<'a>]) -> PickleFault {
        self.fault(format!("a tensor or parameter with arguments {}; expected {expected}", kinds(fields)))
    }
}

/// Lists the kinds of the first 8 values, for error messages.
fn kinds(values: &[Value<'_>]) -> String {
    const SHOWN: usize = 8;
    let shown = values.iter().take(SHOWN).map(Value::kind).collect::<Vec<_>>().join(", ");
    if values.len() > SHOWN { format!("({shown}, …)") } else { format!("({shown})") }
}
