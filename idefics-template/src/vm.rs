//! The state of one rendering: the budget, the output and the objects created so far.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::ast::Block;
use crate::budget::Budget;
use crate::clock::Now;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::object::{Function, Object};
use crate::repr::to_str;
use crate::scope::Scope;
use crate::value::{Dict, Seq, Value};

pub(crate) struct Vm<'a> {
    pub(crate) budget: Budget,
    pub(crate) context: IndexMap<Arc<str>, Value>,
    pub(crate) blocks: &'a [Arc<Block>],
    pub(crate) now: Now,
    /// Whether values are escaped when they are printed. Off, except inside `{% autoescape true %}`.
    pub(crate) autoescape: bool,
    /// Whether `autoescape` depends on a variable, so that the reference does not know it at compile time.
    pub(crate) volatile: bool,
    /// Whether a constant is being evaluated in advance, as the reference does at compile time.
    pub(crate) folding: bool,
    /// The outermost scope, which is the parent scope of blocks.
    pub(crate) root: Rc<Scope>,
    /// The output, followed by one buffer for each enclosing body whose output is captured, the innermost last.
    pub(crate) out: Vec<String>,
    /// Byte ranges of the output that `{% generation %}` blocks wrote.
    pub(crate) generated: Vec<Range<usize>>,
    /// All objects that could be part of a reference cycle; they are cleared at the end.
    objects: Vec<Rc<Object>>,
    random: u64,
}

impl<'a> Vm<'a> {
    pub(crate) fn new(
        context: &serde_json::Map<String, serde_json::Value>,
        blocks: &'a [Arc<Block>],
        budget: Budget,
        now: Now,
    ) -> Result<Self> {
        let context = context.iter().map(|(name, value)| Ok((name.as_str().into(), from_json(value, 0)?)));
        Ok(Self {
            budget,
            context: context.collect::<Result<_>>()?,
            blocks,
            now,
            autoescape: false,
            volatile: false,
            folding: false,
            root: Scope::root(),
            out: vec![String::new()],
            generated: Vec::new(),
            objects: Vec::new(),
            random: now.seed(),
        })
    }

    /// Creates an object. It is cleared when the rendering ends.
    pub(crate) fn object(&mut self, object: Object) -> Result<Value> {
        self.budget.scan(256)?;
        let object = Rc::new(object);
        self.objects.push(object.clone());
        Ok(Value::Object(object))
    }

    /// Looks up a variable, then a global function.
    pub(crate) fn lookup(&self, scope: &Scope, name: &str) -> Value {
        if let Some(value) = scope.get(name).or_else(|| self.context.get(name).cloned()) {
            return value;
        }
        if name == "self" {
            return Value::Object(Rc::new(Object::Template));
        }
        match Function::from_name(name) {
            Some(function) => Value::Object(Rc::new(Object::Function(function))),
            None => Value::undefined_name(name),
        }
    }

    /// Writes text to the output or the innermost buffer.
    pub(crate) fn write(&mut self, text: &str) -> Result<()> {
        self.budget.scan(text.len())?;
        let buffered = self.out.len() > 1;
        if let Some(out) = self.out.last_mut() {
            if buffered {
                self.budget.check_value(out.len() + text.len())?;
            }
            out.push_str(text);
        }
        Ok(())
    }

    /// Prints a value, escaped if `autoescape` is on.
    pub(crate) fn print(&mut self, value: &Value) -> Result<()> {
        if let Value::Str(text) = value
            && (!self.autoescape || text.safe)
        {
            return self.write(&text.text);
        }
        self.measure(value)?;
        let text = to_str(value, &mut self.budget)?;
        match self.autoescape && !value.is_safe() {
            true => {
                let escaped = crate::html::escape(&text, &mut self.budget)?;
                self.write(&escaped)
            }
            false => self.write(&text),
        }
    }

    /// Determines the length of a loop object, because the length is printed as part of the object.
    pub(crate) fn measure(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Object(object) if matches!(**object, Object::Loop(_)) => self.measure_loop(object),
            _ => Ok(()),
        }
    }

    /// Creates a string and counts its size.
    pub(crate) fn string(&mut self, text: String) -> Result<Value> {
        self.budget.build(text.len())?;
        Ok(Value::str(text))
    }

    /// Turns captured output into a string, which counts as escaped if `autoescape` is on.
    pub(crate) fn buffered(&mut self, text: String) -> Result<Value> {
        self.budget.build(text.len())?;
        Ok(Value::text(text, self.autoescape))
    }

    /// Returns a random number below `bound`, for the filter `random`.
    pub(crate) fn random(&mut self, bound: usize) -> usize {
        // The generator is splitmix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        self.objects.iter().for_each(|object| object.clear());
    }
}

/// Maximum nesting depth of the context.
const MAX_CONTEXT_DEPTH: u32 = 128;

fn from_json(value: &serde_json::Value, depth: u32) -> Result<Value> {
    if depth > MAX_CONTEXT_DEPTH {
        return Err(Error::new(ErrorKind::Limit, format!("{MAX_CONTEXT_DEPTH} nested values in the messages")));
    }
    Ok(match value {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::int(number),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::str(text.as_str()),
        serde_json::Value::Array(items) => {
            let items = items.iter().map(|item| from_json(item, depth + 1)).collect::<Result<_>>()?;
            Value::List(Rc::new(Seq::unchecked(items)))
        }
        serde_json::Value::Object(map) => {
            let map = map.iter().map(|(key, value)| Ok((Key::str(key.as_str()), from_json(value, depth + 1)?)));
            Value::Dict(Rc::new(Dict::unchecked(map.collect::<Result<_>>()?)))
        }
    })
}
