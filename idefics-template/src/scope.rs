//! The variables of a template, scope in scope.

use std::cell::RefCell;
use std::rc::Rc;

use crate::ast::Name;
use crate::value::Value;

/// The variables that one body sets, and the scope around it.
#[derive(Debug)]
pub(crate) struct Scope {
    variables: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    /// The outermost scope.
    pub(crate) fn root() -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: None })
    }

    pub(crate) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(parent.clone()) })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(found) = scope {
            let variables = found.variables.borrow();
            if let Some((_, value)) = variables.iter().rev().find(|(known, _)| **known == *name) {
                return Some(value.clone());
            }
            scope = found.parent.as_deref();
        }
        None
    }

    pub(crate) fn set(&self, name: &Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        let old = match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => Some(std::mem::replace(known, value)),
            None => {
                variables.push((name.clone(), value));
                None
            }
        };
        drop(variables);
        drop(old);
    }
}
