//! The stack machine that interprets `data.pkl`. It implements the small part of Python's `pickle.py` that tensors
//! need.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::PickleFault;
use super::global::Global;
use super::limits::MAX_TENSORS;
use super::opcode::{self as op, name};
use super::value::{Dict, Heap, Value};

/// Maximum number of values and marks on the stack. PyTorch pushes the items of a dictionary a thousand at a time.
const MAX_STACK: usize = 1 << 16;
/// Maximum number of values in the memo. A tensor takes about eight of them.
const MAX_MEMO: usize = 1 << 20;
/// Maximum number of dictionaries, plus the number of all values in tuples and dictionaries. A tensor adds about
/// thirty.
const MAX_VALUES: usize = 40 * MAX_TENSORS;
/// Maximum length of a string, in bytes.
const MAX_STRING_BYTES: usize = 64 << 10;
/// Maximum length of the name of a module or class, in bytes.
const MAX_GLOBAL_BYTES: usize = 256;

/// The state of a running program.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    code: Cursor<'a>,
    /// Offset of the current opcode in the program, in bytes.
    at: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at which the items of a tuple or dictionary start.
    marks: Vec<usize>,
    memo: Vec<Value<'a>>,
    /// Number of dictionaries so far, plus the number of all values in tuples and dictionaries. At most [`MAX_VALUES`].
    values: usize,
    /// For each storage key, the index of the storage in [`Heap::storages`].
    pub(super) storages: HashMap<&'a str, usize>,
    pub(super) heap: Heap<'a>,
}

/// Runs a program and returns the objects that it created.
pub(super) fn run(program: &[u8]) -> Result<Heap<'_>, PickleFault> {
    let mut machine = Machine {
        code: Cursor::new(program, 0),
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        values: 0,
        storages: HashMap::new(),
        heap: Heap::default(),
    };
    machine.check_protocol()?;
    while !machine.step()? {}
    Ok(machine.heap)
}

impl<'a> Machine<'a> {
    /// Creates an error at the current opcode.
    pub(super) fn fault(&self, reason: impl Into<String>) -> PickleFault {
        PickleFault::Program { at: self.at as u64, reason: reason.into() }
    }

    /// Creates an error about a call that is not allowed.
    pub(super) fn call_fault(&self, callee: String) -> PickleFault {
        PickleFault::Call { at: self.at as u64, callee }
    }

    /// Rejects protocols other than 2 to 5. PyTorch never wrote protocols 0 and 1, which use other opcodes, to a zip
    /// file.
    fn check_protocol(&mut self) -> Result<(), PickleFault> {
        match (self.code.u8(), self.code.u8()) {
            (Some(op::PROTO), Some(2..=5)) => Ok(()),
            (Some(op::PROTO), Some(other)) => Err(self.fault(format!("pickle protocol {other}; expected 2 to 5"))),
            _ => Err(self.fault("expected a pickle program of protocol 2 to 5")),
        }
    }

    /// Executes one opcode; returns true at the end of the program.
    fn step(&mut self) -> Result<bool, PickleFault> {
        self.at = self.code.at();
        let opcode = self.operand(Cursor::u8)?;
        match opcode {
            op::FRAME => {
                let length = self.operand(Cursor::u64)?;
                if length > self.code.left() as u64 {
                    return Err(
                        self.fault(format!("a frame of {length} bytes, but only {} are left", self.code.left()))
                    );
                }
            }
            op::STOP => return self.stop().map(|()| true),

            op::NONE => self.push(Value::None)?,
            op::NEWTRUE | op::NEWFALSE => self.push(Value::Bool)?,
            op::BININT => self.operand(Cursor::i32).and_then(|int| self.push(Value::Int(int.into())))?,
            op::BININT1 => self.operand(Cursor::u8).and_then(|int| self.push(Value::Int(int.into())))?,
            op::BININT2 => self.operand(Cursor::u16).and_then(|int| self.push(Value::Int(int.into())))?,
            op::LONG1 => {
                let length = self.operand(Cursor::u8)?;
                let int = self.long(length.into())?;
                self.push(Value::Int(int))?;
            }
            op::BINUNICODE => self.operand(Cursor::u32).and_then(|length| self.push_string(length as usize))?,
            op::SHORT_BINUNICODE => self.operand(Cursor::u8).and_then(|length| self.push_string(length.into()))?,

            op::MARK => {
                self.marks.push(self.stack.len());
                self.check_stack()?;
            }
            op::EMPTY_TUPLE => self.tuple(self.stack.len())?,
            op::TUPLE1 => self.top(1).and_then(|start| self.tuple(start))?,
            op::TUPLE2 => self.top(2).and_then(|start| self.tuple(start))?,
            op::TUPLE3 => self.top(3).and_then(|start| self.tuple(start))?,
            op::TUPLE => self.pop_mark().and_then(|start| self.tuple(start))?,
            op::EMPTY_DICT => self.push_dict(false)?,
            op::SETITEM => self.top(2).and_then(|start| self.set_items(start))?,
            op::SETITEMS => self.pop_mark().and_then(|start| self.set_items(start))?,

            op::GLOBAL => {
                let (module, name) = (self.code.line(MAX_GLOBAL_BYTES), self.code.line(MAX_GLOBAL_BYTES));
                let text = |line: Option<&'a [u8]>| std::str::from_utf8(line?).ok();
                let (Some(module), Some(name)) = (text(module), text(name)) else {
                    return Err(self.fault("expected a module and a name, each on its own line"));
                };
                self.push_global(module, name)?;
            }
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => self.push_global(module, name)?,
                _ => return Err(self.fault("expected a module and a name on the stack")),
            },
            op::BINPERSID => self.load_storage()?,
            op::REDUCE => self.call()?,
            op::BUILD => self.set_attributes()?,

            op::BINPUT => self.operand(Cursor::u8).and_then(|index| self.put(index.into()))?,
            op::LONG_BINPUT => self.operand(Cursor::u32).and_then(|index| self.put(index as usize))?,
            op::MEMOIZE => self.put(self.memo.len())?,
            op::BINGET => self.operand(Cursor::u8).and_then(|index| self.get(index.into()))?,
            op::LONG_BINGET => self.operand(Cursor::u32).and_then(|index| self.get(index as usize))?,

            _ => return Err(PickleFault::Opcode { at: self.at as u64, opcode, name: name(opcode) }),
        }
        Ok(false)
    }

    /// Reads the operand of the current opcode.
    fn operand<T>(&mut self, read: impl FnOnce(&mut Cursor<'a>) -> Option<T>) -> Result<T, PickleFault> {
        let operand = read(&mut self.code);
        operand.ok_or_else(|| self.fault("the program ends in the middle of an opcode"))
    }

    /// Executes `STOP`. The stack must hold exactly one value, the result, and the program must end here.
    fn stop(&mut self) -> Result<(), PickleFault> {
        self.heap.result = Some(self.pop()?);
        match (self.stack.len() + self.marks.len(), self.code.left()) {
            (0, 0) => Ok(()),
            (0, left) => Err(self.fault(format!("{left} bytes after the end of the program"))),
            (left, _) => Err(self.fault(format!("{left} values and marks are left on the stack"))),
        }
    }

    /// Reads a two's complement integer of `length` bytes.
    fn long(&mut self, length: usize) -> Result<i64, PickleFault> {
        if length > 8 {
            return Err(self.fault(format!("an integer of {length} bytes; at most 8 are allowed")));
        }
        let bytes = self.operand(|code| code.take(length))?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn push_string(&mut self, length: usize) -> Result<(), PickleFault> {
        if length > MAX_STRING_BYTES {
            return Err(limit("bytes in a string of data.pkl", length, MAX_STRING_BYTES));
        }
        let bytes = self.operand(|code| code.take(length))?;
        let text =
            std::str::from_utf8(bytes).map_err(|error| self.fault(format!("a string that is not UTF-8: {error}")))?;
        self.push(Value::Str(text))
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), PickleFault> {
        let text = |text: &str| text.chars().take(MAX_GLOBAL_BYTES).collect();
        match Global::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => Err(PickleFault::Global { at: self.at as u64, module: text(module), name: text(name) }),
        }
    }

    pub(super) fn push_dict(&mut self, ordered: bool) -> Result<(), PickleFault> {
        self.count_values(1)?;
        let dict = Heap::push(&mut self.heap.dicts, Dict { items: Vec::new(), ordered });
        self.push(Value::Dict(dict))
    }

    pub(super) fn push(&mut self, value: Value<'a>) -> Result<(), PickleFault> {
        self.stack.push(value);
        self.check_stack()
    }

    fn check_stack(&self) -> Result<(), PickleFault> {
        match self.stack.len() + self.marks.len() {
            height if height > MAX_STACK => Err(limit("values on the stack of data.pkl", height, MAX_STACK)),
            _ => Ok(()),
        }
    }

    /// Counts values that are kept until the end of the program, and checks their limit.
    fn count_values(&mut self, count: usize) -> Result<(), PickleFault> {
        self.values += count;
        match self.values {
            found if found > MAX_VALUES => Err(limit("values in data.pkl", found, MAX_VALUES)),
            _ => Ok(()),
        }
    }

    /// Returns the stack height below the `count` topmost values. All of them must be above the last mark.
    fn top(&self, count: usize) -> Result<usize, PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(start),
            _ => Err(self.fault(format!("expected {count} values on the stack"))),
        }
    }

    pub(super) fn pop(&mut self) -> Result<Value<'a>, PickleFault> {
        self.top(1)?;
        self.stack.pop().ok_or_else(|| self.fault("expected a value on the stack"))
    }

    fn pop_mark(&mut self) -> Result<usize, PickleFault> {
        self.marks.pop().ok_or_else(|| self.fault("expected a mark on the stack"))
    }

    /// Replaces all values on the stack from index `start` on by one tuple with these values.
    fn tuple(&mut self, start: usize) -> Result<(), PickleFault> {
        self.count_values(self.stack.len() - start)?;
        let tuple = self.heap.new_tuple(self.stack.drain(start..));
        self.push(Value::Tuple(tuple))
    }

    /// Moves the keys and values on the stack from index `start` on into the dictionary below them.
    fn set_items(&mut self, start: usize) -> Result<(), PickleFault> {
        self.count_values(self.stack.len() - start)?;
        let (below, items) = self.stack.split_at(start);
        let floor = self.marks.last().copied().unwrap_or(0);
        let Some(Value::Dict(dict)) = below.get(floor..).and_then(<[_]>::last) else {
            return Err(self.fault("expected a dictionary on the stack, below its items"));
        };
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.fault("a key without a value"));
        };
        let dict = *dict;
        if self.heap.dicts[dict].items.is_empty() {
            self.heap.dicts[dict].items.reserve_exact(pairs.len()); // `push` would reserve at least four items
        }
        for [key, value] in pairs {
            let Value::Str(key) = key else {
                return Err(self.fault(format!("{} as the key of a dictionary; expected a string", key.kind())));
            };
            self.heap.dicts[dict].items.push((key, *value));
        }
        self.stack.truncate(start);
        Ok(())
    }

    /// Stores the top of the stack in the memo. Python numbers the entries consecutively and never overwrites them, so
    /// `index` must be the next number.
    fn put(&mut self, index: usize) -> Result<(), PickleFault> {
        let top = self.top(1)?;
        if index != self.memo.len() {
            return Err(self.fault(format!("memo entry {index}; expected {}", self.memo.len())));
        }
        self.memo.push(self.stack[top]);
        match self.memo.len() {
            found if found > MAX_MEMO => Err(limit("values in the memo of data.pkl", found, MAX_MEMO)),
            _ => Ok(()),
        }
    }

    fn get(&mut self, index: usize) -> Result<(), PickleFault> {
        match self.memo.get(index) {
            Some(&value) => self.push(value),
            None => Err(self.fault(format!("memo entry {index}, but there are {} entries", self.memo.len()))),
        }
    }
}

pub(super) fn limit(what: &'static str, found: usize, limit: usize) -> PickleFault {
    PickleFault::Limit { what, found: found as u64, limit: limit as u64 }
}
