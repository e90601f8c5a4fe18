//! A parsed template, and its rendering.

use std::ops::Range;
use std::sync::Arc;

use crate::ast::{Block, Body};
use crate::budget::{Budget, Limits};
use crate::check::check;
use crate::clock::Now;
use crate::error::Result;
use crate::parser::parse;
use crate::symbols::resolve;
use crate::vm::Vm;

/// A parsed chat template.
#[derive(Debug, Clone)]
pub struct Template {
    program: Arc<Program>,
}

#[derive(Debug)]
struct Program {
    body: Body,
    blocks: Vec<Arc<Block>>,
}

/// What a template wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The parts of the text, in bytes, that `{% generation %}` blocks wrote.
    ///
    /// As in the reference, the parts are right where the blocks stand outside of macros, recursive loops and other
    /// blocks whose text is kept before it is written.
    pub generated: Vec<Range<usize>>,
}

impl Template {
    /// Parses a template with the settings of the reference: blocks take the line break after them and the white space
    /// before them, and `break`, `continue` and `generation` are known.
    ///
    /// # Errors
    /// Says what is wrong and on which line.
    pub fn parse(source: &str) -> Result<Self> {
        let (mut body, blocks) = parse(source)?;
        check(&body)?;
        resolve(&mut body, true)?;
        Ok(Self { program: Arc::new(Program { body, blocks }) })
    }

    /// Renders the template with the variables of `context`. `now` is what `strftime_now` writes.
    ///
    /// # Errors
    /// Says what failed and on which line, where the reference raises an exception or a limit is exceeded.
    pub fn render(
        &self,
        context: &serde_json::Map<String, serde_json::Value>,
        limits: Limits,
        now: Now,
    ) -> Result<Rendered> {
        let mut vm = Vm::new(context, &self.program.blocks, Budget::new(limits), now)?;
        let root = vm.root.clone();
        vm.exec(&self.program.body, &root)?;
        let text = vm.out.pop().unwrap_or_default();
        let mut generated = std::mem::take(&mut vm.generated);
        generated.retain(|part| text.get(part.clone()).is_some());
        Ok(Rendered { text, generated })
    }
}
