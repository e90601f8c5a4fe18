//! Visits and maps a module's parameters by their names in a checkpoint, which are the paths of their fields. The
//! variant of an enum and the field of a [`FlatModule`](crate::FlatModule) do not appear in a path.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::{PackedWeight, flat};

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
    /// Called once per parameter, in the order of the fields. For a quantised weight, [`Self::map_packed`] is called
    /// instead.
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;

    /// Called instead of [`Self::map`] for a quantised weight, which is attached to `param`. If `param` is returned, as
    /// by default, the weight stays quantised. If another parameter is returned, the weight becomes dense.
    fn map_packed<const D: usize>(&mut self, _name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param
    }
}

/// Calls `visitor` for every parameter of `module`.
pub fn visit_parameters<M: Module>(module: &M, visitor: &mut impl ParameterVisitor) {
    module.visit(&mut Named { path: Path::default(), inner: visitor });
}

/// Applies `mapper` to every parameter of `module`.
pub fn map_parameters<M: Module>(module: M, mapper: &mut impl ParameterMapper) -> M {
    module.map(&mut Named { path: Path::default(), inner: mapper })
}

/// The fields that lead from the module to the current parameter.
#[derive(Default)]
struct Path(Vec<Field>);

struct Field {
    name: String,
    /// Burn's name for the type that has the field, for example `Struct:Linear`.
    container: String,
    /// Whether the field is left out of names.
    is_hidden: bool,
}

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        if is_enum(container) {
            return;
        }
        let is_flat = container == flat::CONTAINER;
        if let Some(outer) = self.0.last_mut().filter(|_| is_flat) {
            outer.is_hidden = true;
        }
        self.0.push(Field { name: name.to_owned(), container: container.to_owned(), is_hidden: is_flat });
    }

    fn exit(&mut self, container: &str) {
        if !is_enum(container) {
            self.0.pop();
        }
    }

    /// Returns the name of the current parameter.
    fn name(&self) -> String {
        let names: Vec<&str> =
            self.0.iter().filter(|field| !field.is_hidden).map(|field| field.name.as_str()).collect();
        names.join(".")
    }
}

/// Returns whether the container is a derived enum. If so, Burn passes the name of a variant, not of a field.
fn is_enum(container: &str) -> bool {
    container.starts_with("Enum:")
}

/// Calls a visitor or mapper with the name of each parameter.
struct Named<'a, T> {
    path: Path,
    inner: &'a mut T,
}

impl<T: ParameterVisitor> ModuleVisitor for Named<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.name();
        match PackedWeight::carried_by(param) {
            Some(weight) => self.inner.visit_packed(&name, weight),
            None => self.inner.visit(&name, param),
        }
    }
}

impl<T: ParameterMapper> ModuleMapper for Named<'_, T> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        match PackedWeight::carried_by(&param) {
            Some(_) => self.inner.map_packed(&name, param),
            None => self.inner.map(&name, param),
        }
    }
}

/// The kinds of matrices. Matrices hold most of a model's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// Weight of a [`crate::Linear`].
    Linear,
    /// Table of a [`crate::Embedding`].
    Embedding,
}

/// Finds the matrices of `module`, by name.
pub(crate) fn matrices<M: Module>(module: &M) -> HashMap<String, Matrix> {
    let mut found = Matrices::default();
    module.visit(&mut found);
    found.matrices
}

#[derive(Default)]
struct Matrices {
    path: Path,
    matrices: HashMap<String, Matrix>,
}

impl ModuleVisitor for Matrices {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        let matrix = match self.path.0.last().map(|field| (field.name.as_str(), field.container.as_str())) {
            Some(("weight", "Struct:Linear")) => Matrix::Linear,
            Some(("weight", "Struct:Embedding")) => Matrix::Embedding,
            _ => return,
        };
        self.matrices.insert(self.path.name(), matrix);
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{Embedding, FlatModule, Linear};

    #[derive(Module, Debug)]
    struct Inner {
        linear: FlatModule<Linear>,
        additional_fc: Option<Linear>,
    }

    #[derive(Module, Debug)]
    struct Outer {
        body: FlatModule<FlatModule<Inner>>,
        table: Embedding,
    }

    #[test]
    fn flat_modules_leave_their_field_out_of_names() {
        struct Names(Vec<String>);
        impl ParameterVisitor for Names {
            fn visit<const D: usize>(&mut self, name: &str, _param: &Param<Tensor<D>>) {
                self.0.push(name.to_owned());
            }
        }
        let linear = || Linear::new_without_bias(2, 2, &Device::flex());
        let inner = || FlatModule::from(Inner { linear: linear().into(), additional_fc: Some(linear()) });
        let table = Embedding::new(2, 2, &Device::flex());
        let module = Outer { body: inner().into(), table };
        let mut names = Names(Vec::new());
        visit_parameters(&module, &mut names);
        assert_eq!(names.0, ["weight", "additional_fc.weight", "table.weight"]);
        let matrices = matrices(&module);
        assert_eq!(matrices["weight"], Matrix::Linear);
        assert_eq!((matrices["table.weight"], matrices.len()), (Matrix::Embedding, 3));
    }
}
