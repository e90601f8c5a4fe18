//! Reports unknown filters and tests before rendering, as the reference does.
//!
//! The reference compiles a template before it renders it. An unknown name is an error at that point, unless it is used
//! directly inside an `if`. In this module, `lenient` means inside an `if`. Unknown names are accepted there and fail
//! only when they are executed.

use crate::ast::{Args, Body, Expr, ExprKind, Macro, Stmt, StmtKind};
use crate::error::{Error, Result};
use crate::value::Value;

pub(crate) fn check(body: &Body) -> Result<()> {
    stmts(body, false)
}

fn stmts(body: &[Stmt], lenient: bool) -> Result<()> {
    body.iter().try_for_each(|stmt| self::stmt(stmt, lenient))
}

fn stmt(stmt: &Stmt, lenient: bool) -> Result<()> {
    match &stmt.kind {
        StmtKind::Print(value) | StmtKind::Set(_, value) => expr(value, lenient),
        StmtKind::SetBlock(_, filter, body) => {
            stmts(body, false)?;
            filter.iter().try_for_each(|filter| expr(filter, false))
        }
        StmtKind::For(statement) => {
            statement.test.iter().try_for_each(|test| expr(test, false))?;
            expr(&statement.iter, lenient)?;
            stmts(&statement.body, false)?;
            stmts(&statement.otherwise, false)
        }
        StmtKind::If(branches, otherwise) => {
            for (test, body) in branches {
                expr(test, true)?;
                stmts(body, true)?;
            }
            stmts(otherwise, true)
        }
        StmtKind::With(assignments, body) => {
            assignments.iter().try_for_each(|(_, value)| expr(value, lenient))?;
            stmts(body, false)
        }
        StmtKind::Macro(declared) => macro_body(declared),
        StmtKind::Call(call, body) => {
            macro_body(body)?;
            expr(call, lenient)
        }
        StmtKind::Filter(filter, body) => {
            stmts(body, false)?;
            expr(filter, false)
        }
        StmtKind::Block(block, _) => stmts(&block.body, false),
        StmtKind::Autoescape(value, body) => {
            expr(value, false)?;
            stmts(body, false)
        }
        StmtKind::Generation(body, _) => stmts(body, false),
        StmtKind::Data(_) | StmtKind::Unset(_) | StmtKind::Break | StmtKind::Continue | StmtKind::Load(_) => Ok(()),
    }
}

fn macro_body(declared: &Macro) -> Result<()> {
    declared.params.iter().filter_map(|(_, default)| default.as_ref()).try_for_each(|value| expr(value, false))?;
    stmts(&declared.body, false)
}

fn expr(value: &Expr, lenient: bool) -> Result<()> {
    let all = |values: &[Expr]| values.iter().try_for_each(|value| expr(value, lenient));
    match &value.kind {
        ExprKind::Const(_) | ExprKind::Name(_) => Ok(()),
        ExprKind::List(items) | ExprKind::Tuple(items) | ExprKind::Concat(items) => all(items),
        ExprKind::Dict(pairs) => {
            pairs.iter().try_for_each(|(key, value)| expr(key, lenient).and_then(|()| expr(value, lenient)))
        }
        ExprKind::Unary(_, value) | ExprKind::Attr(value, _) => expr(value, lenient),
        // The reference drops the second operand if the first is constant and decides the result.
        ExprKind::And(pair) | ExprKind::Or(pair)
            if literal(&pair.0).is_some_and(|first| first == matches!(value.kind, ExprKind::Or(_))) =>
        {
            Ok(())
        }
        ExprKind::Binary(_, pair) | ExprKind::And(pair) | ExprKind::Or(pair) | ExprKind::Item(pair) => {
            expr(&pair.0, lenient)?;
            expr(&pair.1, lenient)
        }
        ExprKind::Compare(first, rest) => {
            expr(first, lenient)?;
            rest.iter().try_for_each(|(_, value)| expr(value, lenient))
        }
        ExprKind::Cond(parts) => {
            expr(&parts.0, true)?;
            expr(&parts.1, true)?;
            parts.2.iter().try_for_each(|value| expr(value, true))
        }
        ExprKind::Slice(parts) => parts.iter().flatten().try_for_each(|value| expr(value, lenient)),
        ExprKind::Call(callee, arguments) => {
            expr(callee, lenient)?;
            args(arguments, lenient)
        }
        ExprKind::Filter(inner, name, arguments) => {
            if !lenient && !crate::filters::exists(name) {
                return Err(Error::syntax(format!("no filter named '{name}'"), value.line));
            }
            inner.iter().try_for_each(|inner| expr(inner, lenient))?;
            args(arguments, lenient)
        }
        ExprKind::Test(inner, name, arguments) => {
            if !lenient && !crate::tests::exists(name) {
                return Err(Error::syntax(format!("no test named '{name}'"), value.line));
            }
            expr(inner, lenient)?;
            args(arguments, lenient)
        }
    }
}

/// Returns the truth value of a literal, or `None` for other expressions.
fn literal(value: &Expr) -> Option<bool> {
    match &value.kind {
        ExprKind::Const(value) => Some(Value::from_const(value).is_true()),
        _ => None,
    }
}

fn args(args: &Args, lenient: bool) -> Result<()> {
    let named = args.named.iter().map(|(_, value)| value);
    let mut all = args.positional.iter().chain(named).chain(&args.star).chain(&args.star_star);
    all.try_for_each(|value| expr(value, lenient))
}
