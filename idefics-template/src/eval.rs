//! Evaluation of expressions.

use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexMap;

use crate::args::Args;
use crate::ast::{self, BinaryOp, CompareOp, Expr, ExprKind, UnaryOp};
use crate::error::{Error, ErrorKind, Result};
use crate::iter::Iter;
use crate::key::{Key, equal, order};
use crate::object::Object;
use crate::repr::{soft_text, to_str};
use crate::scope::Scope;
use crate::value::Value;
use crate::vm::Vm;
use crate::{html, number, ops};

impl Vm<'_> {
    pub(crate) fn eval(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.budget.step().map_err(|error| error.at(expr.line))?;
        match &expr.kind {
            ExprKind::Const(ast::Const::Float(number)) if !self.folding && !number.is_finite() => {
                return Err(non_finite_constant().at(expr.line));
            }
            ExprKind::Const(value) => return Ok(Value::from_const(value)),
            ExprKind::Name(name) => return Ok(self.lookup(scope, name)),
            _ => {}
        }
        if expr.is_constant && !self.folding {
            match self.fold(expr, scope) {
                Ok(value) => match has_literal_form(&value) {
                    Some(true) => return Ok(value),
                    Some(false) => return Err(non_finite_constant().at(expr.line)),
                    None => {}
                },
                Err(error) if error.kind() == ErrorKind::Limit => return Err(error),
                Err(_) => {}
            }
        }
        self.budget.enter().map_err(|error| error.at(expr.line))?;
        let value = self.eval_inner(expr, scope).map_err(|error| error.at(expr.line));
        self.budget.leave();
        value
    }

    /// Evaluates the expression of an output tag, `{{ … }}`.
    pub(crate) fn eval_output(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        if expr.is_constant {
            match self.fold(expr, scope) {
                Err(error) if error.kind() != ErrorKind::Limit => {}
                result => return result,
            }
        }
        self.eval(expr, scope)
    }

    /// Evaluates a constant expression as the reference does at compile time. If this fails, the reference evaluates
    /// the expression at render time instead.
    fn fold(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.folding = true;
        let value = self.eval(expr, scope);
        self.folding = false;
        value
    }

    /// Evaluates a branch, or a later operand of `and`, `or` or a comparison. The operand may be non-constant although
    /// the whole expression counts as constant. Constant folding then fails.
    fn eval_rest(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match self.folding && !expr.is_constant {
            true => Err(Error::value("the operand is not a constant")),
            false => self.eval(expr, scope),
        }
    }

    fn eval_inner(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match &expr.kind {
            ExprKind::Const(value) => Ok(Value::from_const(value)),
            ExprKind::Name(name) => Ok(self.lookup(scope, name)),
            ExprKind::List(items) => {
                let items = self.eval_all(items, scope)?;
                Value::list(items, &mut self.budget)
            }
            ExprKind::Tuple(items) => {
                let items = self.eval_all(items, scope)?;
                Value::tuple(items, &mut self.budget)
            }
            ExprKind::Dict(pairs) => self.eval_dict(pairs, scope),
            ExprKind::Concat(parts) => self.eval_concat(parts, scope),
            ExprKind::Unary(operator, value) => {
                let value = self.eval(value, scope)?;
                match operator {
                    UnaryOp::Not => Ok(Value::Bool(!value.is_true())),
                    UnaryOp::Neg => number::negate(value.defined()?),
                    UnaryOp::Pos if number::is_number(&value) => ops::positive(&value),
                    UnaryOp::Pos => {
                        value.defined()?;
                        Err(Error::type_error(format!("bad operand type for unary +: '{}'", value.type_name())))
                    }
                }
            }
            ExprKind::Binary(operator, pair) => {
                let left = self.eval(&pair.0, scope)?;
                let right = self.eval(&pair.1, scope)?;
                // The reference writes a negative constant to the compiled code without parentheses, and `-2 ** n`
                // means `-(2 ** n)`.
                if *operator == BinaryOp::Pow && pair.0.is_constant && !expr.is_constant && number::is_negative(&left) {
                    let power = ops::binary(self, *operator, &number::negate(&left)?, &right)?;
                    return number::negate(&power);
                }
                ops::binary(self, *operator, &left, &right)
            }
            ExprKind::And(pair) => {
                let left = self.eval(&pair.0, scope)?;
                if left.is_true() { self.eval_rest(&pair.1, scope) } else { Ok(left) }
            }
            ExprKind::Or(pair) => {
                let left = self.eval(&pair.0, scope)?;
                if left.is_true() { Ok(left) } else { self.eval_rest(&pair.1, scope) }
            }
            ExprKind::Compare(first, rest) => self.eval_compare(first, rest, scope),
            ExprKind::Cond(parts) => {
                if self.eval(&parts.0, scope)?.is_true() {
                    return self.eval_rest(&parts.1, scope);
                }
                match &parts.2 {
                    Some(otherwise) => self.eval_rest(otherwise, scope),
                    None if self.folding => Err(Error::value("not a constant")),
                    None => Ok(Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )),
                }
            }
            ExprKind::Attr(value, name) => {
                let value = self.eval(value, scope)?;
                self.get_attr(&value, name)
            }
            ExprKind::Item(pair) => {
                let value = self.eval(&pair.0, scope)?;
                let key = self.eval(&pair.1, scope)?;
                self.get_item(&value, &key)
            }
            ExprKind::Slice(parts) => {
                let mut values = [Value::None, Value::None, Value::None];
                for (value, part) in values.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *value = self.eval(part, scope)?;
                    }
                }
                Ok(Value::Slice(Rc::new(values)))
            }
            ExprKind::Call(callee, args) => self.eval_call(callee, args, scope, None),
            ExprKind::Filter(value, name, args) => {
                let value = match value {
                    Some(value) => self.eval(value, scope)?,
                    None => return Err(Error::value("the filter has no value to work on")),
                };
                let args = self.eval_args(args, scope)?;
                self.call_filter(name, value, args)
            }
            ExprKind::Test(value, name, args) => {
                let value = self.eval(value, scope)?;
                let args = self.eval_args(args, scope)?;
                self.call_test(name, &value, args).map(Value::Bool)
            }
        }
    }

    fn eval_all(&mut self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    #[inline(never)]
    fn eval_dict(&mut self, pairs: &[(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut map = IndexMap::with_capacity(pairs.len());
        for (key, value) in pairs {
            let key = Key::new(self.eval(key, scope)?)?;
            let value = self.eval(value, scope)?;
            map.insert(key, value);
        }
        Value::dict(map, &mut self.budget)
    }

    /// Evaluates `~`: converts all operands to text and concatenates them.
    #[inline(never)]
    fn eval_concat(&mut self, parts: &[Expr], scope: &Rc<Scope>) -> Result<Value> {
        let values = self.eval_all(parts, scope)?;
        let escapes = self.autoescape && !self.volatile && values.iter().any(Value::is_safe);
        let mut text = String::new();
        for value in &values {
            self.measure(value)?;
            let part = to_str(value, &mut self.budget)?;
            self.budget.check_value(text.len() + part.len())?;
            match escapes && !value.is_safe() {
                true => text += &html::escape(&part, &mut self.budget)?,
                false => text += &part,
            }
        }
        self.budget.build(text.len())?;
        Ok(Value::text(text, escapes))
    }

    #[inline(never)]
    fn eval_compare(&mut self, first: &Expr, rest: &[(CompareOp, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut left = self.eval(first, scope)?;
        for (operator, right) in rest {
            let right = self.eval_rest(right, scope)?;
            if !self.compare(*operator, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    /// Evaluates one comparison.
    pub(crate) fn compare(&mut self, operator: CompareOp, left: &Value, right: &Value) -> Result<bool> {
        self.budget.scan(left.weight().min(right.weight()) / 8)?;
        let ordered = |sign: &str| order(left, right, sign);
        Ok(match operator {
            CompareOp::Eq => equal(left, right),
            CompareOp::Ne => !equal(left, right),
            CompareOp::Lt => ordered("<")? == Some(Ordering::Less),
            CompareOp::Le => ordered("<=")?.is_some_and(Ordering::is_le),
            CompareOp::Gt => ordered(">")? == Some(Ordering::Greater),
            CompareOp::Ge => ordered(">=")?.is_some_and(Ordering::is_ge),
            CompareOp::In => ops::contains(self, right, left)?,
            CompareOp::NotIn => !ops::contains(self, right, left)?,
        })
    }

    #[inline(never)]
    pub(crate) fn eval_args(&mut self, args: &ast::Args, scope: &Rc<Scope>) -> Result<Args> {
        self.eval_args_with(args, scope, None)
    }

    /// Evaluates arguments. `caller`, the body of a `call` block, becomes a keyword argument of that name.
    fn eval_args_with(&mut self, args: &ast::Args, scope: &Rc<Scope>, caller: Option<Value>) -> Result<Args> {
        let mut values = Args { positional: self.eval_all(&args.positional, scope)?, named: Vec::new() };
        for (name, value) in &args.named {
            let value = self.eval(value, scope)?;
            values.named.push((name.clone(), value));
        }
        values.named.extend(caller.map(|caller| ("caller".into(), caller)));
        if let Some(star) = &args.star {
            let star = self.eval(star, scope)?;
            let items = Iter::new(&star)?.collect(self)?;
            values.positional.extend(items);
        }
        if let Some(star_star) = &args.star_star {
            let map = self.eval(star_star, scope)?;
            let Value::Dict(dict) = &map else {
                map.defined()?;
                return Err(Error::type_error(format!("argument after ** must be a mapping, not {}", map.type_name())));
            };
            self.budget.scan(32 * dict.map.len())?;
            for (key, value) in &dict.map {
                let Value::Str(name) = &key.0 else { return Err(Error::type_error("keywords must be strings")) };
                if values.named.iter().any(|(known, _)| *known == name.text) {
                    return Err(Error::type_error(format!("got multiple values for keyword argument '{}'", name.text)));
                }
                values.named.push((name.text.clone(), value.clone()));
            }
        }
        Ok(values)
    }

    /// Evaluates a call. `caller` is the body of a `call` block.
    #[inline(never)]
    pub(crate) fn eval_call(
        &mut self,
        callee: &Expr,
        args: &ast::Args,
        scope: &Rc<Scope>,
        caller: Option<Value>,
    ) -> Result<Value> {
        let callee = match &callee.kind {
            // Methods are called directly, without creating a bound method first.
            ExprKind::Attr(receiver, name) => {
                let receiver = self.eval(receiver, scope)?;
                if !name.starts_with('_') && crate::attr::has_method(&receiver, name) {
                    let args = self.eval_args_with(args, scope, caller)?;
                    return self.call_method(&receiver, name, args);
                }
                self.get_attr(&receiver, name)?
            }
            _ => self.eval(callee, scope)?,
        };
        let args = self.eval_args_with(args, scope, caller)?;
        self.call(&callee, args)
    }

    /// Looks up the attributes and items in `parts` one after the other, as filters do for `attribute=`. Replaces
    /// undefined results by `default`, if there is one.
    pub(crate) fn attribute(&mut self, value: &Value, parts: &[Value], default: Option<&Value>) -> Result<Value> {
        let mut value = value.clone();
        for part in parts {
            value = self.get_item(&value, part)?;
            if let Some(default) = default
                && value.is_undefined()
            {
                value = default.clone();
            }
        }
        Ok(value)
    }

    /// Splits an attribute path such as `a.b.0` into its parts. Source: `_prepare_attribute_parts`.
    pub(crate) fn attribute_parts(&mut self, attribute: &Value) -> Result<Vec<Value>> {
        Ok(match attribute {
            Value::None => Vec::new(),
            Value::Str(text) => {
                self.budget.scan(24 * text.text.len())?;
                let part = |part: &str| match !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
                    true => part.parse().map_or_else(|_| Value::str(part), Value::Int),
                    false => Value::str(part),
                };
                text.text.split('.').map(part).collect()
            }
            other => vec![other.clone()],
        })
    }

    /// Creates an iterator object, which can be read once.
    pub(crate) fn iterator(&mut self, iter: Iter, name: &'static str) -> Result<Value> {
        self.object(Object::Iter { iter: iter.into(), name })
    }

    /// Converts a value to text as `soft_str` of markupsafe does. Strings are kept, including whether they are escaped.
    pub(crate) fn soft(&mut self, value: &Value) -> Result<crate::value::Text> {
        soft_text(value, &mut self.budget)
    }
}

/// Creates the error for an infinite or NaN constant. The reference writes constants to its compiled code, where `inf`
/// and `nan` are undefined names.
fn non_finite_constant() -> Error {
    Error::value("name 'inf' is not defined: constants must be finite")
}

/// Whether the reference can write a constant to its compiled code. It cannot write infinite and NaN numbers. `None` if
/// the value has no literal form, so that the reference does not try.
fn has_literal_form(value: &Value) -> Option<bool> {
    fn all<'a>(mut items: impl Iterator<Item = &'a Value>) -> Option<bool> {
        items.try_fold(true, |all, item| has_literal_form(item).map(|item| all && item))
    }
    match value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Str(_) | Value::Range(_) => Some(true),
        Value::Float(number) => Some(number.is_finite()),
        Value::Tuple(seq) if seq.is_group => None,
        Value::List(seq) | Value::Tuple(seq) => all(seq.items.iter()),
        Value::Dict(dict) => all(dict.map.iter().flat_map(|(key, value)| [&key.0, value])),
        Value::Undefined(_) | Value::View(..) | Value::Slice(_) | Value::Object(_) => None,
    }
}
