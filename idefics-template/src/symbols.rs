//! Finds the variables that a body sets before it reads them.
//!
//! The reference compiles each body to code in which all variables exist from the start. A variable that the body sets
//! before reading it is undefined until it is set. This also holds in inner bodies, and even if the context defines the
//! variable. A variable that is read first, or set only in a branch, is looked up in the outer scopes.
//!
//! Source: `jinja2.idtracking`.

use std::collections::HashSet;
use std::sync::Arc;

use crate::ast::{Body, Expr, Macro, Name, SpecialNames, Stmt, StmtKind, Target};
use crate::error::{Error, Result};

/// Inserts a [`StmtKind::Unset`] statement at the start of each body that sets variables before it reads them. `body`
/// is the body of a template or of a block.
pub(crate) fn resolve(body: &mut Body, is_template: bool) -> Result<()> {
    let mut frame = Frame { is_template, ..Frame::default() };
    frame.stmts(body, false);
    frame.finish(body)
}

/// The variables of one body.
#[derive(Default)]
struct Frame<'a> {
    parent: Option<&'a Frame<'a>>,
    known: HashSet<Name>,
    unset: Vec<Name>,
    is_template: bool,
}

impl Frame<'_> {
    fn inside<'a>(parent: &'a Frame<'a>) -> Frame<'a> {
        Frame { parent: Some(parent), ..Frame::default() }
    }

    fn is_known_outside(&self, name: &Name) -> bool {
        self.parent.is_some_and(|parent| parent.known.contains(name) || parent.is_known_outside(name))
    }

    fn is_known(&self, name: &Name) -> bool {
        self.known.contains(name) || self.is_known_outside(name)
    }

    fn read(&mut self, value: &Expr) {
        value.names(&mut |name| self.read_name(name));
    }

    fn read_name(&mut self, name: &Name) {
        if !self.is_known(name) {
            self.known.insert(name.clone());
        }
    }

    fn write(&mut self, name: &Name, in_branch: bool) {
        if self.known.insert(name.clone()) && !in_branch && !self.is_known_outside(name) {
            self.unset.push(name.clone());
        }
    }

    fn target(&mut self, target: &Target, in_branch: bool) {
        match target {
            Target::Name(name) => self.write(name, in_branch),
            Target::Attr(name, _) => self.read_name(name),
            Target::Tuple(items) => items.iter().for_each(|item| self.target(item, in_branch)),
        }
    }

    /// Records the names of a target that has a value from the start of the body, such as a loop variable.
    fn param(&mut self, target: &Target) {
        match target {
            Target::Name(name) | Target::Attr(name, _) => {
                self.known.insert(name.clone());
            }
            Target::Tuple(items) => items.iter().for_each(|item| self.param(item)),
        }
    }

    fn special(&mut self, uses: SpecialNames) {
        for (name, used) in [("caller", uses.caller), ("kwargs", uses.kwargs), ("varargs", uses.varargs)] {
            if used {
                self.known.insert(name.into());
            }
        }
    }

    /// Records the names that the body reads and writes, in order. Inner bodies have their own frames.
    fn stmts(&mut self, body: &[Stmt], in_branch: bool) {
        for stmt in body {
            match &stmt.kind {
                StmtKind::Print(value) | StmtKind::Call(value, _) | StmtKind::Filter(value, _) => self.read(value),
                StmtKind::Set(target, value) => {
                    self.read(value);
                    self.target(target, in_branch);
                }
                StmtKind::SetBlock(target, ..) => self.target(target, in_branch),
                StmtKind::For(statement) => self.read(&statement.iter),
                StmtKind::If(branches, otherwise) => {
                    for (test, body) in branches {
                        self.read(test);
                        self.stmts(body, true);
                    }
                    self.stmts(otherwise, true);
                }
                StmtKind::With(assignments, _) => assignments.iter().for_each(|(_, value)| self.read(value)),
                StmtKind::Macro(declared) => declared.name.iter().for_each(|name| self.write(name, in_branch)),
                StmtKind::Data(_)
                | StmtKind::Block(..)
                | StmtKind::Autoescape(..)
                | StmtKind::Generation(..)
                | StmtKind::Unset(_)
                | StmtKind::Break
                | StmtKind::Continue
                | StmtKind::Load(_) => {}
            }
        }
    }

    /// Resolves the inner bodies, then inserts a [`StmtKind::Unset`] statement into this body if it has unset names.
    fn finish(mut self, body: &mut Body) -> Result<()> {
        let unset = std::mem::take(&mut self.unset);
        self.inner(body)?;
        if !unset.is_empty() {
            let line = body.first().map_or(1, |stmt| stmt.line);
            body.insert(0, Stmt { line, kind: StmtKind::Unset(unset) });
        }
        Ok(())
    }

    fn inner(&self, body: &mut [Stmt]) -> Result<()> {
        for stmt in body {
            let line = stmt.line;
            self.inner_stmt(&mut stmt.kind).map_err(|error| error.at(line))?;
        }
        Ok(())
    }

    fn inner_stmt(&self, kind: &mut StmtKind) -> Result<()> {
        let mut frame = Frame::inside(self);
        match kind {
            StmtKind::SetBlock(_, filter, body) => {
                frame.stmts(body, false);
                let mut unknown = None;
                if let Some(filter) = filter {
                    filter
                        .names(&mut |name| unknown = unknown.take().or((!frame.is_known(name)).then(|| name.clone())));
                }
                if let Some(name) = unknown {
                    let message =
                        format!("a set block's filter is the first to read '{name}'; read '{name}' before the block");
                    return Err(Error::value(message));
                }
                frame.finish(body)
            }
            StmtKind::For(statement) => {
                let Some(statement) = Arc::get_mut(statement) else { return Ok(()) };
                frame.param(&statement.target);
                frame.known.insert("loop".into());
                frame.stmts(&statement.body, false);
                frame.finish(&mut statement.body)?;
                let mut frame = Frame::inside(self);
                frame.stmts(&statement.otherwise, false);
                frame.finish(&mut statement.otherwise)
            }
            StmtKind::If(branches, otherwise) => {
                branches.iter_mut().try_for_each(|(_, body)| self.inner(body))?;
                self.inner(otherwise)
            }
            StmtKind::With(assignments, body) => {
                assignments.iter().for_each(|(target, _)| frame.param(target));
                frame.stmts(body, false);
                frame.finish(body)
            }
            StmtKind::Macro(declared) | StmtKind::Call(_, declared) => {
                let Some(Macro { params, body, uses, .. }) = Arc::get_mut(declared) else { return Ok(()) };
                params.iter().for_each(|(name, _)| {
                    frame.known.insert(name.clone());
                });
                params.iter().filter_map(|(_, default)| default.as_ref()).for_each(|default| frame.read(default));
                frame.special(*uses);
                frame.stmts(body, false);
                frame.finish(body)
            }
            StmtKind::Filter(filter, body) => {
                frame.stmts(body, false);
                frame.read(filter);
                frame.finish(body)
            }
            StmtKind::Autoescape(value, body) => {
                frame.read(value);
                frame.stmts(body, false);
                frame.finish(body)
            }
            StmtKind::Generation(body, uses) => {
                frame.special(*uses);
                frame.stmts(body, false);
                frame.finish(body)
            }
            StmtKind::Load("extends") if !self.is_template => {
                Err(Error::value("'extends' can only be used at the top level of a template"))
            }
            // Blocks were resolved by the parser.
            StmtKind::Block(..)
            | StmtKind::Data(_)
            | StmtKind::Print(_)
            | StmtKind::Set(..)
            | StmtKind::Unset(_)
            | StmtKind::Break
            | StmtKind::Continue
            | StmtKind::Load(_) => Ok(()),
        }
    }
}
