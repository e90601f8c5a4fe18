//! Modules whose field names do not appear in the tensor names.

use std::ops::{Deref, DerefMut};

use burn::module::Module;

/// A wrapper whose field name does not appear in the names of the tensors inside it. It is for checkpoints in which the
/// tensors of several modules have names on the same level. [`visit_parameters`](crate::visit_parameters) leaves the
/// field name out.
///
/// ```
/// use burn::module::Module;
/// use idefics_nn::{Embedding, FlatModule};
///
/// #[derive(Module, Debug)]
/// struct TwoTables {
///     table: FlatModule<Embedding>,            // its tensor is `weight`
///     additional_embedding: Option<Embedding>, // `additional_embedding.weight`
/// }
/// ```
#[derive(Module, Debug)]
pub struct FlatModule<M: Module> {
    module: M,
}

/// The container name that Burn passes to visitors and mappers for a [`FlatModule`].
pub(crate) const CONTAINER: &str = "Struct:FlatModule";

impl<M: Module> From<M> for FlatModule<M> {
    fn from(module: M) -> Self {
        Self { module }
    }
}

impl<M: Module> Deref for FlatModule<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.module
    }
}

impl<M: Module> DerefMut for FlatModule<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.module
    }
}
