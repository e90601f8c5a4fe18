//! Nested variable scopes.

use std::cell::RefCell;
use std::rc::Rc;

use crate::ast::Name;
use crate::value::Value;

/// The variables set by one body, and the enclosing scope.
#[derive(Debug)]
pub(crate) struct Scope {
    /// Variables and their values. The value is `None` if the body sets the variable later; the variable is undefined
    /// until then.
    variables: RefCell<Vec<(Name, Option<Value>)>>,
    parent: Option<Rc<Scope>>,
    /// Whether this is the scope of a block. A block skips variables of outer scopes that have not been set yet.
    is_block: bool,
}

impl Scope {
    /// Creates the outermost scope.
    pub(crate) fn root() -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: None, is_block: false })
    }

    pub(crate) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(parent.clone()), is_block: false })
    }

    /// Creates the scope of a block.
    pub(crate) fn block(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(parent.clone()), is_block: true })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        let mut left_block = false;
        while let Some(found) = scope {
            let variables = found.variables.borrow();
            if let Some((_, value)) = variables.iter().rev().find(|(known, _)| **known == *name) {
                match value {
                    Some(value) => return Some(value.clone()),
                    None if left_block => {}
                    None => return Some(Value::undefined_name(name)),
                }
            }
            left_block |= found.is_block;
            scope = found.parent.as_deref();
        }
        None
    }

    /// Declares variables that the body sets later. They are undefined until then.
    pub(crate) fn unset(&self, names: &[Name]) {
        self.variables.borrow_mut().extend(names.iter().map(|name| (name.clone(), None)));
    }

    pub(crate) fn set(&self, name: &Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        let old = match variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, known)) => known.replace(value),
            None => {
                variables.push((name.clone(), Some(value)));
                None
            }
        };
        drop(variables);
        drop(old);
    }
}
