//! The limits of one rendering.
//!
//! Templates are untrusted programs. Counting steps limits the time. Counting the bytes of every value before it is
//! built limits the memory.

use crate::error::{Error, Result};

/// Limits on the time and memory of one rendering.
///
/// The values of the context do not count towards the limits until the template builds something from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum number of evaluated expressions and executed statements.
    pub steps: u64,
    /// Maximum size of a single value in bytes, including the items of a list or dict.
    pub value_bytes: usize,
    /// Maximum total size in bytes of all values that are built and of all text that is written or scanned.
    pub total_bytes: usize,
    /// Maximum nesting depth of calls, blocks and expressions while rendering; at most 400.
    pub depth: u32,
}

impl Default for Limits {
    /// Returns limits that suffice for any chat template and a conversation of up to 1 MiB.
    fn default() -> Self {
        Self::for_conversation(1000, 1 << 20)
    }
}

impl Limits {
    /// Returns limits that suffice for any chat template and a conversation of `parts` messages and content parts, with
    /// `bytes` bytes of text in total.
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

    /// Sets the maximum number of steps.
    pub fn with_steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the maximum size of a single value and of all values together, in bytes.
    pub fn with_bytes(mut self, value_bytes: usize, total_bytes: usize) -> Self {
        (self.value_bytes, self.total_bytes) = (value_bytes, total_bytes);
        self
    }

    /// Sets the maximum nesting depth of calls, blocks and expressions. Values above 400 are reduced to 400, because
    /// deeper nesting could overflow the stack.
    pub fn with_depth(mut self, depth: u32) -> Self {
        self.depth = depth.min(MAX_DEPTH);
        self
    }
}

/// Maximum nesting depth while rendering. Deeper nesting could overflow the stack of a thread.
pub(crate) const MAX_DEPTH: u32 = 400;
/// Maximum nesting depth of lists, tuples and dicts.
pub(crate) const MAX_VALUE_DEPTH: u32 = 200;
/// Maximum size of an integer in bits, about 9900 decimal digits. Python refuses to print more than 4300 digits.
pub(crate) const MAX_INT_BITS: u64 = 1 << 15;
/// Maximum length of a `range`. Source: `jinja2.sandbox.MAX_RANGE`.
pub(crate) const MAX_RANGE: usize = 100_000;

/// The remaining budget of one rendering.
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

    /// Counts a value of `bytes` bytes that is about to be built, and checks its size.
    pub(crate) fn build(&mut self, bytes: usize) -> Result<()> {
        self.check_value(bytes)?;
        self.scan(bytes)
    }

    /// Checks the size of one value, in bytes.
    pub(crate) fn check_value(&self, bytes: usize) -> Result<()> {
        match bytes > self.limits.value_bytes {
            true => Err(Error::limit(format!("{} bytes in one value", self.limits.value_bytes))),
            false => Ok(()),
        }
    }

    /// Counts `bytes` bytes of existing values that are about to be read.
    pub(crate) fn scan(&mut self, bytes: usize) -> Result<()> {
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                Ok(())
            }
            None => Err(Error::limit(format!("{} bytes in all values", self.limits.total_bytes))),
        }
    }

    /// Returns the maximum size of a value, in bytes.
    pub(crate) fn value_bytes(&self) -> usize {
        self.limits.value_bytes
    }

    /// Enters one nesting level; the caller must call `leave`.
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
