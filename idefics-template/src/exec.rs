//! Execution of statements.

use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::ast::{Block, Body, Expr, ExprKind, For, Macro, Stmt, StmtKind, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::iter::Iter;
use crate::key::Key;
use crate::object::{Loop, MacroObject, Object};
use crate::parser::no_loader;
use crate::scope::Scope;
use crate::value::{Seq, Value};
use crate::vm::Vm;

/// How the execution of a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Normal,
    Break,
    Continue,
}

impl Vm<'_> {
    pub(crate) fn exec(&mut self, body: &Body, scope: &Rc<Scope>) -> Result<Flow> {
        for stmt in body {
            let flow = self.stmt(stmt, scope).map_err(|error| error.at(stmt.line))?;
            if flow != Flow::Normal {
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    fn stmt(&mut self, stmt: &Stmt, scope: &Rc<Scope>) -> Result<Flow> {
        self.budget.step()?;
        match &stmt.kind {
            StmtKind::Data(text) => self.write(text)?,
            StmtKind::Print(value) => {
                let value = self.eval_output(value, scope)?;
                self.print(&value)?;
            }
            StmtKind::Unset(names) => {
                self.budget.scan(64 * names.len())?;
                scope.unset(names);
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            _ => {
                self.budget.enter()?;
                let flow = self.compound(&stmt.kind, scope);
                self.budget.leave();
                return flow;
            }
        }
        Ok(Flow::Normal)
    }

    fn compound(&mut self, kind: &StmtKind, scope: &Rc<Scope>) -> Result<Flow> {
        match kind {
            StmtKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.eval(test, scope)?.is_true() {
                        return self.exec(body, scope);
                    }
                }
                return self.exec(otherwise, scope);
            }
            StmtKind::For(statement) => self.for_loop(statement, scope)?,
            StmtKind::Set(target, value) => {
                self.check_target(target, scope)?;
                let value = self.eval(value, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let inner = Scope::inside(scope);
                let (text, flow) = self.capture(body, &inner)?;
                if flow != Flow::Normal {
                    return Ok(flow);
                }
                let mut value = self.buffered(text)?;
                if let Some(filter) = filter {
                    value = self.filter_chain(filter, value, &inner)?;
                    if self.autoescape {
                        value = Value::safe(self.soft(&value)?.text);
                    }
                }
                self.assign(target, value, scope)?;
            }
            StmtKind::With(assignments, body) => {
                let inner = Scope::inside(scope);
                for (target, value) in assignments {
                    let value = self.eval(value, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.exec(body, &inner);
            }
            StmtKind::Macro(declared) => {
                let object = self.macro_object(declared, scope);
                let value = self.object(Object::Macro(object))?;
                if let Some(name) = &declared.name {
                    scope.set(name, value);
                }
            }
            StmtKind::Call(call, body) => self.call_block(call, body, scope)?,
            StmtKind::Filter(filter, body) => {
                let inner = Scope::inside(scope);
                let (text, flow) = self.capture(body, &inner)?;
                if flow != Flow::Normal {
                    return Ok(flow);
                }
                let value = self.buffered(text)?;
                // The result is written without escaping. It must be a string.
                match self.filter_chain(filter, value, &inner)? {
                    Value::Str(text) => self.write(&text.text)?,
                    other => {
                        return Err(Error::type_error(format!("filter block gave {}, not text", other.type_name())));
                    }
                }
            }
            StmtKind::Block(block, scoped) => {
                let scope = Scope::block(if *scoped { scope } else { &self.root });
                self.block(block, &scope)?;
            }
            StmtKind::Autoescape(value, body) => {
                let inner = Scope::inside(scope);
                let saved = (self.autoescape, self.volatile);
                self.autoescape = self.eval(value, scope)?.is_true();
                self.volatile |= !value.is_constant;
                let flow = self.exec(body, &inner);
                (self.autoescape, self.volatile) = saved;
                return flow;
            }
            StmtKind::Generation(body, uses) => {
                let inner = Scope::inside(scope);
                // The reference compiles the block to a macro and calls it without arguments.
                if uses.caller {
                    inner.set(&"caller".into(), Value::undefined("No caller defined"));
                }
                if uses.kwargs {
                    inner.set(&"kwargs".into(), Value::dict(IndexMap::new(), &mut self.budget)?);
                }
                if uses.varargs {
                    inner.set(&"varargs".into(), Value::tuple(Vec::new(), &mut self.budget)?);
                }
                let (text, _) = self.capture(body, &inner)?;
                let start = self.out.first().map_or(0, String::len);
                self.generated.push(start..start + text.len());
                self.write(&text)?;
            }
            StmtKind::Load(tag) => return Err(no_loader(tag)),
            StmtKind::Data(_) | StmtKind::Print(_) | StmtKind::Unset(_) | StmtKind::Break | StmtKind::Continue => {}
        }
        Ok(Flow::Normal)
    }

    /// Executes a body and captures its output.
    pub(crate) fn capture(&mut self, body: &Body, scope: &Rc<Scope>) -> Result<(String, Flow)> {
        self.out.push(String::new());
        let result = self.exec(body, scope);
        let text = self.out.pop().unwrap_or_default();
        result.map(|flow| (text, flow))
    }

    /// Applies a chain of filters to the text of a body.
    fn filter_chain(&mut self, filter: &Expr, value: Value, scope: &Rc<Scope>) -> Result<Value> {
        let ExprKind::Filter(inner, name, args) = &filter.kind else { return Ok(value) };
        let value = match inner {
            Some(inner) => self.filter_chain(inner, value, scope)?,
            None => value,
        };
        let args = self.eval_args(args, scope)?;
        self.call_filter(name, value, args).map_err(|error| error.at(filter.line))
    }

    /// Checks that a target `name.attribute` belongs to a namespace. This happens before the value is evaluated.
    fn check_target(&mut self, target: &Target, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(_) => Ok(()),
            Target::Tuple(items) => items.iter().try_for_each(|item| self.check_target(item, scope)),
            Target::Attr(name, _) => match self.lookup(scope, name) {
                Value::Object(object) if matches!(*object, Object::Namespace(_)) => Ok(()),
                _ => Err(Error::type_error("cannot assign attribute on non-namespace object")),
            },
        }
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => {
                self.budget.scan(64)?;
                scope.set(name, value);
            }
            Target::Attr(name, attribute) => {
                let Value::Object(object) = self.lookup(scope, name) else { return self.check_target(target, scope) };
                let Object::Namespace(attributes) = &*object else { return self.check_target(target, scope) };
                check_attribute(attribute)?;
                self.budget.scan(64)?;
                let old = attributes.borrow_mut().insert(Key::str(attribute.clone()), value);
                drop(old);
            }
            Target::Tuple(targets) => {
                let items = match &value {
                    Value::List(seq) | Value::Tuple(seq) => seq.items.clone(),
                    value => {
                        let iter = Iter::new(value).map_err(|error| match value.is_undefined() {
                            true => error,
                            false => {
                                Error::type_error(format!("cannot unpack non-iterable {} object", value.type_name()))
                            }
                        })?;
                        iter.collect(self)?
                    }
                };
                if items.len() != targets.len() {
                    let (expected, found) = (targets.len(), items.len());
                    return Err(Error::value(format!("{found} values to unpack, expected {expected}")));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn for_loop(&mut self, statement: &Arc<For>, scope: &Rc<Scope>) -> Result<()> {
        let value = self.eval(&statement.iter, scope)?;
        match statement.recursive {
            true => {
                let text = self.loop_text(statement, scope, &value, 1)?;
                self.write(&text)
            }
            false => self.run_loop(statement, scope, &value, 1),
        }
    }

    /// Runs one level of a recursive loop over `value` and captures its output.
    pub(crate) fn loop_text(
        &mut self,
        statement: &Arc<For>,
        scope: &Rc<Scope>,
        value: &Value,
        depth: usize,
    ) -> Result<String> {
        self.out.push(String::new());
        let result = self.run_loop(statement, scope, value, depth);
        let text = self.out.pop().unwrap_or_default();
        result.map(|()| text)
    }

    fn run_loop(&mut self, statement: &Arc<For>, scope: &Rc<Scope>, value: &Value, depth: usize) -> Result<()> {
        let mut iter = Iter::new(value)?;
        let mut length = value.length().ok();
        if let Some(test) = &statement.test {
            let mut kept = Vec::new();
            while let Some(item) = iter.next(self)? {
                let inner = Scope::inside(scope);
                self.assign(&statement.target, item.clone(), &inner)?;
                if self.eval(test, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            length = Some(kept.len());
            iter = Iter::seq(Rc::new(Seq::unchecked(kept)));
        }
        let recursive = statement.recursive.then(|| (statement.clone(), scope.clone()));
        let state = Loop {
            iter,
            length,
            lookahead: None,
            current: None,
            previous: None,
            yielded: 0,
            last_changed: None,
            depth,
            recursive,
        };
        let value = self.object(Object::Loop(state.into()))?;
        let Value::Object(object) = &value else { return Ok(()) };
        let name = "loop".into();
        let mut completed = false;
        while let Some(item) = self.advance_loop(object)? {
            let inner = Scope::inside(scope);
            inner.set(&name, value.clone());
            self.assign(&statement.target, item, &inner)?;
            match self.exec(&statement.body, &inner)? {
                Flow::Normal => completed = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        // As in the reference, the `else` body runs unless at least one iteration ran to its end.
        if !completed {
            self.exec(&statement.otherwise, &Scope::inside(scope))?;
        }
        object.clear();
        Ok(())
    }

    fn call_block(&mut self, call: &Expr, body: &Arc<Macro>, scope: &Rc<Scope>) -> Result<()> {
        let ExprKind::Call(callee, args) = &call.kind else { return Ok(()) };
        let object = self.macro_object(body, scope);
        let caller = self.object(Object::Macro(object))?;
        let value = self.eval_call(callee, args, scope, Some(caller))?;
        self.print(&value)
    }

    fn macro_object(&self, declared: &Arc<Macro>, scope: &Rc<Scope>) -> MacroObject {
        let autoescape = (!self.volatile).then_some(self.autoescape);
        MacroObject { declared: declared.clone(), autoescape, scope: Some(scope.clone()).into() }
    }

    /// Runs a block. The reference compiles it to a separate function, which does not inherit an enclosing
    /// `autoescape`.
    pub(crate) fn block(&mut self, block: &Arc<Block>, scope: &Rc<Scope>) -> Result<()> {
        if block.required {
            return Err(Error::value(format!("Required block '{}' not found", block.name)));
        }
        let hint = format!("there is no parent block called '{}'.", block.name);
        scope.set(&"super".into(), Value::undefined(hint));
        let saved = (self.autoescape, self.volatile);
        (self.autoescape, self.volatile) = (false, false);
        let result = self.exec(&block.body, scope);
        (self.autoescape, self.volatile) = saved;
        result.map(|_| ())
    }
}

/// Namespace attributes must not start with `_`. Source: `TemplateNamespace._check_name`.
pub(crate) fn check_attribute(name: &str) -> Result<()> {
    match name.starts_with('_') {
        true => Err(Error::new(
            ErrorKind::Security,
            format!("chat templates cannot store the underscore-prefixed attribute '{name}' on a namespace; rename it"),
        )),
        false => Ok(()),
    }
}
