//! The arguments of a call, and their binding to the parameters of a function.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::value::Value;

/// The evaluated arguments of one call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Value>,
    pub(crate) named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// Binds the arguments to `params`, as Python does. The first `required` parameters must be given. A parameter
    /// whose name starts with `/` is positional-only.
    pub(crate) fn bind<const N: usize>(
        self,
        function: &str,
        params: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Error::type_error(format!("{function}() takes at most {N} arguments ({given} given)")));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(index) = params.iter().position(|param| *param == &*name) else {
                return Err(Error::type_error(format!("{function}() got an unexpected keyword argument '{name}'")));
            };
            if values[index].is_some() {
                return Err(Error::type_error(format!("{function}() got multiple values for argument '{name}'")));
            }
            values[index] = Some(value);
        }
        for (param, value) in params.iter().zip(&values).take(required) {
            if value.is_none() {
                let param = param.trim_start_matches('/');
                return Err(Error::type_error(format!("{function}() missing required argument: '{param}'")));
            }
        }
        Ok(values)
    }

    /// Checks that the call has no arguments.
    pub(crate) fn none(self, function: &str) -> Result<()> {
        self.bind(function, [], 0).map(|[]| ())
    }

    /// Returns the only argument, which is required and positional-only.
    pub(crate) fn one(self, function: &str) -> Result<Value> {
        let [value] = self.bind(function, ["/value"], 1)?;
        value.ok_or_else(|| Error::type_error(format!("{function}() takes one argument")))
    }

    /// Removes and returns the first positional argument.
    pub(crate) fn take_first(&mut self) -> Option<Value> {
        (!self.positional.is_empty()).then(|| self.positional.remove(0))
    }

    /// Removes and returns the keyword argument `name`.
    pub(crate) fn take_named(&mut self, name: &str) -> Option<Value> {
        let index = self.named.iter().position(|(known, _)| **known == *name)?;
        Some(self.named.remove(index).1)
    }
}
