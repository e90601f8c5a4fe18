//! Parsed templates, the entry point of this crate.

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

/// The output of a template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendered {
    /// The rendered text.
    pub text: String,
    /// Byte ranges of the text that `{% generation %}` blocks wrote.
    ///
    /// As in the reference, the ranges are wrong if a `generation` block is inside a macro, a recursive loop or
    /// another block whose output is buffered.
    pub generated: Vec<Range<usize>>,
}

impl Template {
    /// Parses a template with the settings of the reference: `trim_blocks` and `lstrip_blocks` are on, and `break`,
    /// `continue` and `generation` are available.
    ///
    /// # Errors
    /// If the template is not valid, uses an unknown filter or test, or nests too deep.
    pub fn parse(source: &str) -> Result<Self> {
        let (mut body, blocks) = parse(source)?;
        check(&body)?;
        resolve(&mut body, true)?;
        Ok(Self { program: Arc::new(Program { body, blocks }) })
    }

    /// Renders the template with the variables in `context`. `strftime_now` formats the time `now`.
    ///
    /// # Errors
    /// If the reference would raise an exception, if a limit is exceeded, or if the template uses an unsupported
    /// function.
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
