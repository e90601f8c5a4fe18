//! The bounds of one rendering.
//!
//! A template is a program from a downloaded folder. Time is bounded by counting steps; memory by counting the bytes of
//! every value that is built, before it is built.

use crate::error::{Error, Result};

/// What one rendering may cost.
///
/// The values of the context count for nothing until the template builds something from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Evaluated expressions and executed statements.
    pub steps: u64,
    /// Size of a single value, in bytes. The parts of a list or a mapping count.
    pub value_bytes: usize,
    /// Size of all values that are built and of all text that is written or searched, in bytes.
    pub total_bytes: usize,
    /// Nesting of calls, blocks and expressions while rendering.
    pub depth: u32,
}

impl Default for Limits {
    /// Enough for any chat template with a conversation of up to 1 MiB.
    fn default() -> Self {
        Self::for_conversation(1000, 1 << 20)
    }
}

impl Limits {
    /// Enough for any chat template that writes a conversation of `parts` messages and content parts, whose texts have
    /// `bytes` in all.
    pub fn for_conversation(parts: usize, bytes: usize) -> Self {
        Self {
            steps: 1_000_000 + 4_000 * parts as u64,
            value_bytes: bytes.saturating_mul(4).saturating_add(1 << 20).saturating_add(parts.saturating_mul(1024)),
            total_bytes: bytes
                .saturating_mul(64)
                .saturating_add(64 << 20)
                .saturating_add(parts.saturating_mul(16 << 10)),
            depth: 400,
        }
    }

    /// Sets the number of steps.
    pub fn with_steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the size of a single value and of all values together, in bytes.
    pub fn with_bytes(mut self, value_bytes: usize, total_bytes: usize) -> Self {
        (self.value_bytes, self.total_bytes) = (value_bytes, total_bytes);
        self
    }

    /// Sets the nesting of calls, blocks and expressions. More than 400 are not granted: the stack is bounded too.
    pub fn with_depth(mut self, depth: u32) -> Self {
        self.depth = depth.min(MAX_DEPTH);
        self
    }
}

/// Deeper nesting could overflow the stack of a thread.
pub(crate) const MAX_DEPTH: u32 = 400;
/// How deep lists, tuples and mappings may nest.
pub(crate) const MAX_VALUE_DEPTH: u32 = 200;
/// Longest integer, in bits. Python prints none of more than 4300 digits.
pub(crate) const MAX_INT_BITS: u64 = 1 << 15;
/// Longest `range`. Source: `jinja2.sandbox.MAX_RANGE`.
pub(crate) const MAX_RANGE: usize = 100_000;

/// What is left of the limits.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    steps: u64,
    bytes: usize,
    depth: u32,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        let limits = limits.with_depth(limits.depth);
        Self { limits, steps: limits.steps, bytes: limits.total_bytes, depth: 0 }
    }

    /// Counts one step.
    pub(crate) fn step(&mut self) -> Result<()> {
        match self.steps.checked_sub(1) {
            Some(steps) => {
                self.steps = steps;
                Ok(())
            }
            None => Err(Error::limit(format!("{} steps", self.limits.steps))),
        }
    }

    /// Counts a value of `bytes` that is about to be built.
    pub(crate) fn build(&mut self, bytes: usize) -> Result<()> {
        self.check_value(bytes)?;
        self.scan(bytes)
    }

    /// Checks the size of one value.
    pub(crate) fn check_value(&self, bytes: usize) -> Result<()> {
        match bytes > self.limits.value_bytes {
            true => Err(Error::limit(format!("{} bytes in one value", self.limits.value_bytes))),
            false => Ok(()),
        }
    }

    /// Counts work over `bytes` that are there already.
    pub(crate) fn scan(&mut self, bytes: usize) -> Result<()> {
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => Err(Error::limit(format!("{} bytes in all values", self.limits.total_bytes))),
        }
    }

    /// Largest value, in bytes.
    pub(crate) fn value_bytes(&self) -> usize {
        self.limits.value_bytes
    }

    /// Goes one level deeper; `leave` must follow.
    pub(crate) fn enter(&mut self) -> Result<()> {
        if self.depth >= self.limits.depth {
            return Err(Error::limit(format!("{} nested calls, blocks and expressions", self.limits.depth)));
        }
        self.depth += 1;
        Ok(())
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }
}
