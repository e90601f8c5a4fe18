//! Parses postfix operators: attributes, subscripts, calls, filters and tests.
//!
//! Source: `jinja2.parser.Parser`.

use crate::ast::{Args, Const, Expr, ExprKind, Name, UnaryOp};
use crate::error::{Error, Result};
use crate::lexer::Token;
use crate::parser::{Parser, describe};

impl Parser {
    pub(crate) fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            value = match self.peek() {
                Token::Operator(".") => self.attribute(value)?,
                Token::Operator("[") => self.subscript(value)?,
                Token::Operator("(") => {
                    let args = self.call_args()?;
                    self.expr(line, ExprKind::Call(Box::new(value), Box::new(args)))?
                }
                _ => return Ok(value),
            };
        }
    }

    pub(crate) fn filter_expr(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            value = match self.peek() {
                Token::Operator("|") => {
                    self.next();
                    self.filter_chain(Some(value))?
                }
                Token::Name(name) if &**name == "is" => self.test(value)?,
                Token::Operator("(") => {
                    let args = self.call_args()?;
                    self.expr(line, ExprKind::Call(Box::new(value), Box::new(args)))?
                }
                _ => return Ok(value),
            };
        }
    }

    fn attribute(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        match self.next() {
            Token::Name(name) => self.expr(line, ExprKind::Attr(Box::new(value), name)),
            Token::Number(number @ (Const::Int(_) | Const::Big(_))) => {
                let index = Expr::new(line, ExprKind::Const(number));
                self.expr(line, ExprKind::Item(Box::new((value, index))))
            }
            other => Err(Error::syntax(format!("expected a name or number, got {}", describe(&other)), line)),
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let mut items = Vec::new();
        while !self.is_operator("]") {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            items.push(self.subscribed()?);
        }
        self.expect_operator("]")?;
        let index = match items.pop() {
            Some(item) if items.is_empty() => item,
            last => {
                items.extend(last);
                Expr::new(line, ExprKind::Tuple(items))
            }
        };
        self.expr(line, ExprKind::Item(Box::new((value, index))))
    }

    fn subscribed(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut parts = [None, None, None];
        if !self.is_operator(":") {
            let value = self.expression(true)?;
            if !self.is_operator(":") {
                return Ok(value);
            }
            parts[0] = Some(value);
        }
        self.next();
        let ends = |parser: &Self| parser.is_operator("]") || parser.is_operator(",");
        if !self.is_operator(":") && !ends(self) {
            parts[1] = Some(self.expression(true)?);
        }
        if self.skip_operator(":") && !ends(self) {
            parts[2] = Some(self.expression(true)?);
        }
        self.expr(line, ExprKind::Slice(Box::new(parts)))
    }

    fn call_args(&mut self) -> Result<Args> {
        let line = self.line();
        let invalid = || Error::syntax("invalid syntax for function call expression", line);
        let mut args = Args::default();
        let mut first = true;
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            first = false;
            if self.skip_operator("*") {
                if args.star.is_some() || args.star_star.is_some() {
                    return Err(invalid());
                }
                args.star = Some(self.expression(true)?);
            } else if self.skip_operator("**") {
                if args.star_star.is_some() {
                    return Err(invalid());
                }
                args.star_star = Some(self.expression(true)?);
            } else if matches!(self.peek(), Token::Name(_)) && self.second_is_operator("=") {
                if args.star_star.is_some() {
                    return Err(invalid());
                }
                let name = self.expect_name()?;
                self.next();
                if args.named.iter().any(|(other, _)| *other == name) {
                    return Err(Error::syntax(format!("keyword argument repeated: {name}"), line));
                }
                args.named.push((name, self.expression(true)?));
            } else {
                if args.star.is_some() || args.star_star.is_some() || !args.named.is_empty() {
                    return Err(invalid());
                }
                args.positional.push(self.expression(true)?);
            }
        }
        self.expect_operator(")")?;
        Ok(args)
    }

    fn dotted_name(&mut self) -> Result<Name> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    /// Parses the filters after a `|`, as in `name(…)|name…`, and returns the expression that
    /// applies them to `value`.
    pub(crate) fn filter_chain(&mut self, mut value: Option<Expr>) -> Result<Expr> {
        loop {
            let line = self.line();
            let name = self.dotted_name()?;
            let args = if self.is_operator("(") { self.call_args()? } else { Args::default() };
            let filter = self.expr(line, ExprKind::Filter(value.map(Box::new), name, Box::new(args)))?;
            if !self.skip_operator("|") {
                return Ok(filter);
            }
            value = Some(filter);
        }
    }

    fn test(&mut self, value: Expr) -> Result<Expr> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let starts_argument = match self.peek() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Str(_) | Token::Number(_) | Token::Operator("[" | "{") => true,
            _ => false,
        };
        let mut args = Args::default();
        if self.is_operator("(") {
            args = self.call_args()?;
        } else if starts_argument {
            if self.is_name("is") {
                return Err(Error::syntax("tests cannot be chained with is", line));
            }
            let argument = self.primary()?;
            args.positional.push(self.postfix(argument)?);
        }
        let test = self.expr(line, ExprKind::Test(Box::new(value), name, Box::new(args)))?;
        match negated {
            true => self.expr(line, ExprKind::Unary(UnaryOp::Not, Box::new(test))),
            false => Ok(test),
        }
    }
}
