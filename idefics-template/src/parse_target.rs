//! Parses assignment targets.
//!
//! Source: `jinja2.parser.Parser.parse_assign_target`.

use crate::ast::{Name, Target};
use crate::error::{Error, Result};
use crate::lexer::Token;
use crate::parser::Parser;

impl Parser {
    /// Parses the target of an assignment: a name, a tuple of targets or, if `namespaces` is set, a namespace
    /// attribute.
    pub(crate) fn target(&mut self, namespaces: bool) -> Result<Target> {
        let line = self.line();
        let value = self.target_tuple(namespaces)?;
        let target = to_target(value, line)?;
        self.note_target(&target);
        Ok(target)
    }

    fn target_tuple(&mut self, namespaces: bool) -> Result<TargetExpr> {
        self.enter_expr()?;
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            items.push(self.target_item(namespaces)?);
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        self.nested_exprs -= 1;
        match items.pop() {
            Some(item) if !is_tuple => Ok(item),
            None => Err(self.expected("an expression")),
            Some(item) => {
                items.push(item);
                Ok(TargetExpr::Tuple(items))
            }
        }
    }

    fn target_item(&mut self, namespaces: bool) -> Result<TargetExpr> {
        if self.skip_operator("(") {
            let inner = match self.is_operator(")") {
                true => TargetExpr::Tuple(Vec::new()),
                false => self.target_tuple(false)?,
            };
            self.expect_operator(")")?;
            return Ok(inner);
        }
        if !matches!(self.peek(), Token::Name(_)) {
            return Err(self.expected("a name to assign to"));
        }
        let name = self.expect_name()?;
        if namespaces && !is_constant(&name) && self.skip_operator(".") {
            let attribute = self.expect_name()?;
            self.note_read(&name);
            return Ok(TargetExpr::Attr(name, attribute));
        }
        Ok(TargetExpr::Name(name))
    }

    fn note_target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.note_store(name),
            Target::Attr(..) => {}
            Target::Tuple(items) => items.iter().for_each(|item| self.note_target(item)),
        }
    }
}

enum TargetExpr {
    Name(Name),
    Attr(Name, Name),
    Tuple(Vec<TargetExpr>),
}

fn to_target(value: TargetExpr, line: u32) -> Result<Target> {
    Ok(match value {
        TargetExpr::Name(name) => {
            check_assignable(&name, line)?;
            Target::Name(name)
        }
        TargetExpr::Attr(name, attribute) => Target::Attr(name, attribute),
        TargetExpr::Tuple(items) => {
            Target::Tuple(items.into_iter().map(|item| to_target(item, line)).collect::<Result<_>>()?)
        }
    })
}

fn is_constant(name: &str) -> bool {
    matches!(name, "true" | "false" | "True" | "False" | "none" | "None")
}

pub(crate) fn check_assignable(name: &str, line: u32) -> Result<()> {
    match is_constant(name) {
        true => Err(Error::syntax(format!("cannot assign to '{name}'"), line)),
        false => Ok(()),
    }
}
