//! A module's parameters under the names that a checkpoint gives them: the paths of their fields.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// Looks at each parameter of a module.
pub trait ParameterVisitor {
    /// Called once a parameter, in the order of the fields; `name` as in `model.text_model.layers.0.mlp.up_proj.weight`.
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>);
}

/// Replaces each parameter of a module.
pub trait ParameterMapper {
    /// Called once a parameter, in the order of the fields.
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Shows every parameter of `module` to `visitor`.
pub fn visit_parameters<M: Module>(module: &M, visitor: &mut impl ParameterVisitor) {
    module.visit(&mut Named { path: Vec::new(), inner: visitor });
}

/// Passes every parameter of `module` through `mapper`.
pub fn map_parameters<M: Module>(module: M, mapper: &mut impl ParameterMapper) -> M {
    module.map(&mut Named { path: Vec::new(), inner: mapper })
}

/// Keeps track of the fields on the way to a parameter.
struct Named<'a, T> {
    path: Vec<String>,
    inner: &'a mut T,
}

impl<T: ParameterVisitor> ModuleVisitor for Named<'_, T> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.inner.visit(&self.path.join("."), param);
    }
}

impl<T: ParameterMapper> ModuleMapper for Named<'_, T> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map(&self.path.join("."), param)
    }
}

/// A matrix that most of a model's bytes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// Weight of a [`crate::Linear`].
    Linear,
    /// Table of a [`crate::Embedding`].
    Embedding,
}

/// The matrices of `module`, by name.
pub(crate) fn matrices<M: Module>(module: &M) -> HashMap<String, Matrix> {
    let mut found = Matrices::default();
    module.visit(&mut found);
    found.matrices
}

#[derive(Default)]
struct Matrices {
    /// Names and types of the fields on the way.
    path: Vec<(String, String)>,
    matrices: HashMap<String, Matrix>,
}

impl ModuleVisitor for Matrices {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container.to_owned()));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        let matrix = match self.path.last().map(|(field, container)| (field.as_str(), container.as_str())) {
            Some(("weight", "Struct:Linear")) => Matrix::Linear,
            Some(("weight", "Struct:Embedding")) => Matrix::Embedding,
            _ => return,
        };
        let names: Vec<&str> = self.path.iter().map(|(name, _)| name.as_str()).collect();
        self.matrices.insert(names.join("."), matrix);
    }
}
