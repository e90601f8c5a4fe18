//! The state of the parser, access to its tokens, bodies, and nesting limits. Statements, expressions and targets are
//! parsed in separate files.
//!
//! Source: `jinja2.parser.Parser`.

use std::sync::Arc;

use crate::ast::{Block, Body, Expr, ExprKind, Name, SpecialNames, Stmt, StmtKind};
use crate::error::{Error, ErrorKind, Result};
use crate::lexer::{Token, tokenize};

/// Maximum depth of an expression tree. Each operator of a chain such as `1 + 1 + 1` adds a level.
const MAX_EXPR_DEPTH: u32 = 160;
/// Maximum recursion depth of the expression parser. Nested brackets, `not`, unary operators and `else` add a level.
const MAX_NESTED_EXPRS: u32 = 64;

pub(crate) struct Parser {
    tokens: Vec<(u32, Token)>,
    pub(crate) position: usize,
    pub(crate) nested_statements: u32,
    pub(crate) nested_exprs: u32,
    /// The special names (`caller`, `kwargs` and `varargs`) that each enclosing macro uses, the innermost macro last.
    pub(crate) uses: Vec<Uses>,
    pub(crate) blocks: Vec<Arc<Block>>,
    /// For each enclosing loop or macro body, whether it is a loop; the innermost last. `break` is allowed only
    /// directly inside a loop.
    pub(crate) loops: Vec<bool>,
}

/// The special names that a macro reads before setting them, and those that it sets.
#[derive(Default)]
pub(crate) struct Uses {
    pub(crate) read: SpecialNames,
    pub(crate) stored: SpecialNames,
}

/// Parses a template into its statements and its blocks.
pub(crate) fn parse(source: &str) -> Result<(Body, Vec<Arc<Block>>)> {
    let mut parser = Parser {
        tokens: tokenize(source)?,
        position: 0,
        nested_statements: 0,
        nested_exprs: 0,
        uses: Vec::new(),
        blocks: Vec::new(),
        loops: Vec::new(),
    };
    let body = parser.body(&[])?;
    Ok((body, parser.blocks))
}

impl Parser {
    pub(crate) fn peek(&self) -> &Token {
        self.tokens.get(self.position).map_or(&Token::End, |(_, token)| token)
    }

    fn peek_second(&self) -> &Token {
        self.tokens.get(self.position + 1).map_or(&Token::End, |(_, token)| token)
    }

    pub(crate) fn line(&self) -> u32 {
        self.tokens.get(self.position).or(self.tokens.last()).map_or(1, |(line, _)| *line)
    }

    pub(crate) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.position += 1;
        token
    }

    pub(crate) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(found) if *found == operator)
    }

    pub(crate) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if **found == *name)
    }

    pub(crate) fn second_is_operator(&self, operator: &str) -> bool {
        matches!(self.peek_second(), Token::Operator(found) if *found == operator)
    }

    pub(crate) fn second_is_name(&self, name: &str) -> bool {
        matches!(self.peek_second(), Token::Name(found) if **found == *name)
    }

    pub(crate) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.position += usize::from(found);
        found
    }

    pub(crate) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.position += usize::from(found);
        found
    }

    pub(crate) fn expect_operator(&mut self, operator: &str) -> Result<()> {
        match self.skip_operator(operator) {
            true => Ok(()),
            false => Err(self.expected(&format!("'{operator}'"))),
        }
    }

    pub(crate) fn expect_word(&mut self, word: &str) -> Result<()> {
        match self.skip_name(word) {
            true => Ok(()),
            false => Err(self.expected(&format!("'{word}'"))),
        }
    }

    pub(crate) fn expect_name(&mut self) -> Result<Name> {
        match self.next() {
            Token::Name(name) => Ok(name),
            _ => {
                self.position -= 1;
                Err(self.expected("a name"))
            }
        }
    }

    /// Creates the error for an unexpected current token.
    pub(crate) fn expected(&self, what: &str) -> Error {
        Error::syntax(format!("expected {what}, got {}", describe(self.peek())), self.line())
    }

    /// Creates an expression, or fails if it nests too deep.
    pub(crate) fn expr(&self, line: u32, kind: ExprKind) -> Result<Expr> {
        let expr = Expr::new(line, kind);
        match expr.depth > MAX_EXPR_DEPTH {
            true => Err(Error::limit(format!("{MAX_EXPR_DEPTH} nested expressions")).at(line)),
            false => Ok(expr),
        }
    }

    /// Enters one level of recursion; the caller must decrement `nested_exprs` afterwards.
    pub(crate) fn enter_expr(&mut self) -> Result<()> {
        if self.nested_exprs >= MAX_NESTED_EXPRS {
            return Err(Error::limit(format!("{MAX_NESTED_EXPRS} nested brackets")).at(self.line()));
        }
        self.nested_exprs += 1;
        Ok(())
    }

    /// Records that `name` is read.
    pub(crate) fn note_read(&mut self, name: &str) {
        for uses in &mut self.uses {
            match name {
                "caller" => uses.read.caller |= !uses.stored.caller,
                "kwargs" => uses.read.kwargs |= !uses.stored.kwargs,
                "varargs" => uses.read.varargs |= !uses.stored.varargs,
                _ => {}
            }
        }
    }

    pub(crate) fn note_store(&mut self, name: &str) {
        for uses in &mut self.uses {
            match name {
                "caller" => uses.stored.caller = true,
                "kwargs" => uses.stored.kwargs = true,
                "varargs" => uses.stored.varargs = true,
                _ => {}
            }
        }
    }

    /// Parses statements up to a tag named in `ends`. The name of that tag is then the next token. If `ends` is empty,
    /// parses up to the end of the template.
    fn body(&mut self, ends: &[&str]) -> Result<Body> {
        let mut body = Body::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => body.push(Stmt { line, kind: StmtKind::Data(text) }),
                Token::VariableBegin => {
                    let value = self.tuple(true, false)?;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                    match self.next() {
                        Token::VariableEnd => {}
                        _ => {
                            self.position -= 1;
                            return Err(self.expected("'}}'"));
                        }
                    }
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.statement(line, ends, &mut body)?;
                    self.block_end()?;
                }
                Token::End if ends.is_empty() => return Ok(body),
                Token::End => {
                    self.position -= 1;
                    let expected = ends.join(" or ");
                    return Err(Error::syntax(format!("unexpected end of template, expected {expected}"), line));
                }
                other => return Err(Error::syntax(format!("unexpected {}", describe(&other)), line)),
            }
        }
    }

    pub(crate) fn block_end(&mut self) -> Result<()> {
        match self.next() {
            Token::BlockEnd => Ok(()),
            _ => {
                self.position -= 1;
                Err(self.expected("'%}'"))
            }
        }
    }

    /// Parses the end of a tag, and the statements up to a tag named in `ends`.
    pub(crate) fn statements(&mut self, ends: &[&str]) -> Result<Body> {
        self.skip_operator(":");
        self.block_end()?;
        self.body(ends)
    }

    /// Parses like `statements` with a single closing tag, and then consumes the name of that tag.
    pub(crate) fn statements_to(&mut self, end: &str) -> Result<Body> {
        let body = self.statements(&[end])?;
        self.position += 1;
        Ok(body)
    }

    pub(crate) fn is_tuple_end(&self) -> bool {
        matches!(self.peek(), Token::VariableEnd | Token::BlockEnd) || self.is_operator(")")
    }
}

pub(crate) fn describe(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".to_owned(),
        Token::BlockBegin => "'{%'".to_owned(),
        Token::BlockEnd => "'%}'".to_owned(),
        Token::VariableBegin => "'{{'".to_owned(),
        Token::VariableEnd => "'}}'".to_owned(),
        Token::Name(name) => format!("'{name}'"),
        Token::Number(_) => "a number".to_owned(),
        Token::Str(_) => "a string".to_owned(),
        Token::Operator(operator) => format!("'{operator}'"),
        Token::End => "the end of the template".to_owned(),
    }
}

/// Creates the error for a statement that needs a template loader.
pub(crate) fn no_loader(tag: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{{% {tag} %}} is not supported: it loads another template"))
}
