//! Visits and maps a module's parameters by their names in a checkpoint, which are the paths of their fields. The
//! variant of an enum does not appear in a path.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::PackedWeight;

/// Visits the parameters of a module.
pub trait ParameterVisitor {
    /// Called once per parameter, in the order of the fields. `name` is a path such as
    /// `model.text_model.layers.0.mlp.up_proj.weight`.
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>);

    /// Called instead of [`Self::visit`] for a quantised weight, which is not a parameter. Does nothing by
    /// default.
    fn visit_packed(&mut self, _name: &str, _weight: &PackedWeight) {}
}

/// Replaces the parameters of a module.
pub trait ParameterMapper {
    /// Called once per parameter, in the order of the fields; not called for quantised weights.
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Calls `visitor` for every parameter of `module`.
pub fn visit_parameters<M: Module>(module: &M, visitor: &mut impl ParameterVisitor) {
    module.visit(&mut Named { path: Vec::new(), inner: visitor });
}

/// Applies `mapper` to every parameter of `module`.
pub fn map_parameters<M: Module>(module: M, mapper: &mut impl ParameterMapper) -> M {
    module.map(&mut Named { path: Vec::new(), inner: mapper })
}

/// Tracks the path of fields to the current parameter.
struct Named<'a, T> {
    path: Vec<String>,
    inner: &'a mut T,
}

impl<T> Named<'_, T> {
    fn enter(&mut self, name: &str, container: &str) {
        if !is_enum(container) {
            self.path.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !is_enum(container) {
            self.path.pop();
        }
    }
}

/// Whether the container is a derived enum, so that the name is its variant.
fn is_enum(container: &str) -> bool {
    container.starts_with("Enum:")
}

impl<T: ParameterVisitor> ModuleVisitor for Named<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        match PackedWeight::carried_by(param) {
            Some(weight) => self.inner.visit_packed(&name, weight),
            None => self.inner.visit(&name, param),
        }
    }
}

impl<T: ParameterMapper> ModuleMapper for Named<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.inner.map(&self.path.join("."), param)
    }
}

/// The matrices, which hold most of a model's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// Weight of a [`crate::Linear`].
    Linear,
    /// Table of a [`crate::Embedding`].
    Embedding,
}

/// The matrices of `module` by name.
pub(crate) fn matrices<M: Module>(module: &M) -> HashMap<String, Matrix> {
    let mut found = Matrices::default();
    module.visit(&mut found);
    found.matrices
}

#[derive(Default)]
struct Matrices {
    /// Names and types of the fields on the path to the current parameter.
    path: Vec<(String, String)>,
    matrices: HashMap<String, Matrix>,
}

impl ModuleVisitor for Matrices {
    fn enter_module(&mut self, name: &str, container: &str) {
        if !is_enum(container) {
            self.path.push((name.to_owned(), container.to_owned()));
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        if !is_enum(container) {
            self.path.pop();
        }
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
