//! Parses expressions.
//!
//! Source: `jinja2.parser.Parser`, which also defines the operator precedence.

use crate::ast::{BinaryOp, CompareOp, Const, Expr, ExprKind, UnaryOp};
use crate::error::{Error, Result};
use crate::lexer::Token;
use crate::parser::{Parser, describe};

impl Parser {
    pub(crate) fn expression(&mut self, with_condition: bool) -> Result<Expr> {
        self.enter_expr()?;
        let value = if with_condition { self.cond_expr()? } else { self.or_expr()? };
        self.nested_exprs -= 1;
        Ok(value)
    }

    /// Parses one expression, or a tuple without parentheses.
    pub(crate) fn tuple(&mut self, with_condition: bool, in_brackets: bool) -> Result<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            items.push(self.expression(with_condition)?);
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            match items.pop() {
                Some(item) => return Ok(item),
                None if !in_brackets => return Err(self.expected("an expression")),
                None => {}
            }
        }
        self.expr(line, ExprKind::Tuple(items))
    }

    fn cond_expr(&mut self) -> Result<Expr> {
        let mut value = self.or_expr()?;
        while self.is_name("if") {
            let line = self.line();
            self.next();
            let test = self.or_expr()?;
            let otherwise = if self.skip_name("else") {
                self.enter_expr()?;
                let otherwise = self.cond_expr()?;
                self.nested_exprs -= 1;
                Some(otherwise)
            } else {
                None
            };
            value = self.expr(line, ExprKind::Cond(Box::new((test, value, otherwise))))?;
        }
        Ok(value)
    }

    fn or_expr(&mut self) -> Result<Expr> {
        let mut left = self.and_expr()?;
        while self.is_name("or") {
            let line = self.line();
            self.next();
            let right = self.and_expr()?;
            left = self.expr(line, ExprKind::Or(Box::new((left, right))))?;
        }
        Ok(left)
    }

    fn and_expr(&mut self) -> Result<Expr> {
        let mut left = self.not_expr()?;
        while self.is_name("and") {
            let line = self.line();
            self.next();
            let right = self.not_expr()?;
            left = self.expr(line, ExprKind::And(Box::new((left, right))))?;
        }
        Ok(left)
    }

    fn not_expr(&mut self) -> Result<Expr> {
        let line = self.line();
        if !self.skip_name("not") {
            return self.compare();
        }
        self.enter_expr()?;
        let value = self.not_expr()?;
        self.nested_exprs -= 1;
        self.expr(line, ExprKind::Unary(UnaryOp::Not, Box::new(value)))
    }

    fn compare(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let operator = match self.peek() {
                Token::Operator("==") => CompareOp::Eq,
                Token::Operator("!=") => CompareOp::Ne,
                Token::Operator("<") => CompareOp::Lt,
                Token::Operator("<=") => CompareOp::Le,
                Token::Operator(">") => CompareOp::Gt,
                Token::Operator(">=") => CompareOp::Ge,
                Token::Name(name) if &**name == "in" => CompareOp::In,
                Token::Name(name) if &**name == "not" && self.second_is_name("in") => CompareOp::NotIn,
                _ => break,
            };
            self.next();
            if operator == CompareOp::NotIn {
                self.next();
            }
            rest.push((operator, self.sum()?));
        }
        match rest.is_empty() {
            true => Ok(first),
            false => self.expr(line, ExprKind::Compare(Box::new(first), rest)),
        }
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.concat()?;
        loop {
            let operator = match self.peek() {
                Token::Operator("+") => BinaryOp::Add,
                Token::Operator("-") => BinaryOp::Sub,
                _ => return Ok(left),
            };
            let line = self.line();
            self.next();
            let right = self.concat()?;
            left = self.expr(line, ExprKind::Binary(operator, Box::new((left, right))))?;
        }
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        self.expr(line, ExprKind::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.power()?;
        loop {
            let operator = match self.peek() {
                Token::Operator("*") => BinaryOp::Mul,
                Token::Operator("/") => BinaryOp::Div,
                Token::Operator("//") => BinaryOp::FloorDiv,
                Token::Operator("%") => BinaryOp::Mod,
                _ => return Ok(left),
            };
            let line = self.line();
            self.next();
            let right = self.power()?;
            left = self.expr(line, ExprKind::Binary(operator, Box::new((left, right))))?;
        }
    }

    fn power(&mut self) -> Result<Expr> {
        let mut left = self.unary(true)?;
        while self.is_operator("**") {
            let line = self.line();
            self.next();
            let right = self.unary(true)?;
            left = self.expr(line, ExprKind::Binary(BinaryOp::Pow, Box::new((left, right))))?;
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Result<Expr> {
        let line = self.line();
        let operator = match self.peek() {
            Token::Operator("-") => Some(UnaryOp::Neg),
            Token::Operator("+") => Some(UnaryOp::Pos),
            _ => None,
        };
        let value = match operator {
            Some(operator) => {
                self.next();
                self.enter_expr()?;
                let value = self.unary(false)?;
                self.nested_exprs -= 1;
                self.expr(line, ExprKind::Unary(operator, Box::new(value)))?
            }
            None => self.primary()?,
        };
        let value = self.postfix(value)?;
        if with_filter { self.filter_expr(value) } else { Ok(value) }
    }

    pub(crate) fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.next() {
            Token::Name(name) => match &*name {
                "true" | "True" => ExprKind::Const(Const::Bool(true)),
                "false" | "False" => ExprKind::Const(Const::Bool(false)),
                "none" | "None" => ExprKind::Const(Const::None),
                _ => {
                    self.note_read(&name);
                    ExprKind::Name(name)
                }
            },
            Token::Str(mut text) => {
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                ExprKind::Const(Const::Str(text.into()))
            }
            Token::Number(number) => ExprKind::Const(number),
            Token::Operator("(") => {
                let value = self.tuple(true, true)?;
                self.expect_operator(")")?;
                return Ok(value);
            }
            Token::Operator("[") => {
                let items = self.sequence("]", Self::any_expression)?;
                ExprKind::List(items)
            }
            Token::Operator("{") => {
                let pairs = self.sequence("}", |parser| {
                    let key = parser.expression(true)?;
                    parser.expect_operator(":")?;
                    Ok((key, parser.expression(true)?))
                })?;
                ExprKind::Dict(pairs)
            }
            other => return Err(Error::syntax(format!("unexpected {}", describe(&other)), line)),
        };
        self.expr(line, kind)
    }

    fn any_expression(&mut self) -> Result<Expr> {
        self.expression(true)
    }

    /// Parses comma-separated items up to and including the closing bracket `end`.
    fn sequence<T>(&mut self, end: &str, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_operator(end) {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_operator(end) {
                break;
            }
            items.push(item(self)?);
        }
        self.expect_operator(end)?;
        Ok(items)
    }
}
