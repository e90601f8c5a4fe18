//! The stack machine that carries out `data.pkl`: Python's `pickle.py`, less everything that is not needed.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::PickleFault;
use super::global::Global;
use super::limits::MAX_TENSORS;
use super::opcode::{self as op, name};
use super::value::{Dict, Heap, Value};

/// Values on the stack; PyTorch leaves a dictionary's items there a thousand at a time.
const MAX_STACK: usize = 1 << 16;
/// Values in the memo; a tensor leaves about eight.
const MAX_MEMO: usize = 1 << 20;
/// Values in tuples and dictionaries, and dictionaries; a tensor takes about thirty.
const MAX_VALUES: usize = 40 * MAX_TENSORS;
/// Bytes of one text.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Bytes of a module's or class's name.
const MAX_GLOBAL_BYTES: usize = 256;

/// A program under way.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    code: Cursor<'a>,
    /// Byte of the opcode that is carried out.
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which a tuple or a dictionary's items begin.
    marks: Vec<usize>,
    memo: Vec<Value<'a>>,
    /// Counts up to [`MAX_VALUES`].
    values: usize,
    /// Index of the storage of that key.
    pub(super) storages: HashMap<&'a str, usize>,
    pub(super) heap: Heap<'a>,
}

/// Carries out a program and returns what it made.
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
    /// An error at the current opcode.
    pub(super) fn fault(&self, reason: impl Into<String>) -> PickleFault {
        PickleFault::Program { at: self.at as u64, reason: reason.into() }
    }

    /// An error of something being called.
    pub(super) fn call_fault(&self, callee: String) -> PickleFault {
        PickleFault::Call { at: self.at as u64, callee }
    }

    /// Protocols 0 and 1 have other opcodes, and nothing of PyTorch ever wrote them into a zip file.
    fn check_protocol(&mut self) -> Result<(), PickleFault> {
        match (self.code.u8(), self.code.u8()) {
            (Some(op::PROTO), Some(2..=5)) => Ok(()),
            (Some(op::PROTO), Some(other)) => Err(self.fault(format!("pickle protocol {other}, expected 2 to 5"))),
            _ => Err(self.fault("expected a pickle program of protocol 2 to 5")),
        }
    }

    /// Carries out one opcode; true at the program's end.
    fn step(&mut self) -> Result<bool, PickleFault> {
        self.at = self.code.at();
        let opcode = self.operand(Cursor::u8)?;
        match opcode {
            op::FRAME => {
                let length = self.operand(Cursor::u64)?;
                if length > self.code.left() as u64 {
                    return Err(self.fault(format!("a frame of {length} bytes, {} are left", self.code.left())));
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
            op::BINUNICODE => self.operand(Cursor::u32).and_then(|length| self.push_text(length as usize))?,
            op::SHORT_BINUNICODE => self.operand(Cursor::u8).and_then(|length| self.push_text(length.into()))?,

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
                    return Err(self.fault("expected a module and a name, each on a line"));
                };
                self.push_global(module, name)?;
            }
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.push_global(module, name)?,
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

    /// What follows the opcode.
    fn operand<T>(&mut self, read: impl FnOnce(&mut Cursor<'a>) -> Option<T>) -> Result<T, PickleFault> {
        let operand = read(&mut self.code);
        operand.ok_or_else(|| self.fault("the program ends in the middle of an opcode"))
    }

    /// The program must return one value and end there.
    fn stop(&mut self) -> Result<(), PickleFault> {
        self.heap.result = Some(self.pop()?);
        match (self.stack.len() + self.marks.len(), self.code.left()) {
            (0, 0) => Ok(()),
            (0, left) => Err(self.fault(format!("{left} bytes behind the end of the program"))),
            (left, _) => Err(self.fault(format!("{left} values and marks are left on the stack"))),
        }
    }

    /// A two's complement number of `length` bytes.
    fn long(&mut self, length: usize) -> Result<i64, PickleFault> {
        if length > 8 {
            return Err(self.fault(format!("an integer of {length} bytes, at most 8 are accepted")));
        }
        let bytes = self.operand(|code| code.take(length))?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn push_text(&mut self, length: usize) -> Result<(), PickleFault> {
        if length > MAX_TEXT_BYTES {
            return Err(limit("bytes in a text of data.pkl", length, MAX_TEXT_BYTES));
        }
        let bytes = self.operand(|code| code.take(length))?;
        let text =
            std::str::from_utf8(bytes).map_err(|error| self.fault(format!("text that is not UTF-8: {error}")))?;
        self.push(Value::Text(text))
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

    /// Counts values that stay until the program's end.
    fn count_values(&mut self, count: usize) -> Result<(), PickleFault> {
        self.values += count;
        match self.values {
            found if found > MAX_VALUES => Err(limit("values in data.pkl", found, MAX_VALUES)),
            _ => Ok(()),
        }
    }

    /// Height of the stack below its `count` topmost values, none of which may lie below the last mark.
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

    /// Makes a tuple of the stack from `start` on.
    fn tuple(&mut self, start: usize) -> Result<(), PickleFault> {
        self.count_values(self.stack.len() - start)?;
        let tuple = self.heap.new_tuple(self.stack.drain(start..));
        self.push(Value::Tuple(tuple))
    }

    /// Moves keys and values from `start` on to the dictionary below them.
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
            self.heap.dicts[dict].items.reserve_exact(pairs.len()); // or a small one takes room for four
        }
        for [key, value] in pairs {
            let Value::Text(key) = key else {
                return Err(self.fault(format!("{} as the key of a dictionary, expected a text", key.kind())));
            };
            self.heap.dicts[dict].items.push((key, *value));
        }
        self.stack.truncate(start);
        Ok(())
    }

    /// Python numbers what it puts into the memo, and puts nothing twice.
    fn put(&mut self, index: usize) -> Result<(), PickleFault> {
        let top = self.top(1)?;
        if index != self.memo.len() {
            return Err(self.fault(format!("memo entry {index}, expected {}", self.memo.len())));
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
            None => Err(self.fault(format!("memo entry {index}, there are {}", self.memo.len()))),
        }
    }
}

pub(super) fn limit(what: &'static str, found: usize, limit: usize) -> PickleFault {
    PickleFault::Limit { what, found: found as u64, limit: limit as u64 }
}
