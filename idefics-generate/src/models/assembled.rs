//! Loads the weights of models of any family, computes their size in memory, and writes them. Every model is a Burn
//! module.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Shape, Tensor};
use idefics_checkpoint::{Checkpoint, CheckpointError};
use idefics_nn::checkpoint::{LoadProgress, WeightMemory, fill_random, write_quantized};
use idefics_nn::{FormatError, LoadModule, LoadOptions, PackedWeight, ParameterVisitor, visit_parameters};

use super::Model;
use crate::Error;

/// A [`Model`] that is also a Burn module, with parameters named as in a checkpoint. Every [`Model`] that is a
/// [`Module`] implements this trait.
pub trait AssembledModel: Model {
    /// Loads the weights of a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError`] that names the invalid file or tensor.
    fn load(
        self: Box<Self>,
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn AssembledModel>, CheckpointError>;

    /// Fills the model with random weights.
    ///
    /// # Errors
    /// [`FormatError`] if weights cannot be quantised according to `options`.
    fn fill_random(
        self: Box<Self>,
        options: &LoadOptions<'_>,
        seed: u64,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn AssembledModel>, FormatError>;

    /// Calls `take` with the name of each weight and the memory that it needs on `device`; see
    /// [`LoadOptions::memory_per_tensor`].
    fn memory_per_tensor(
        &self,
        options: &LoadOptions<'_>,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        take: &mut dyn FnMut(&str, WeightMemory),
    );

    /// Returns the names of the checkpoint's tensors that the model does not use.
    fn unused(&self, checkpoint: &Checkpoint, options: &LoadOptions<'_>) -> Vec<String>;

    /// Writes the weights of a checkpoint to `folder`, with linear layers quantised according to `options`.
    ///
    /// # Errors
    /// Those of [`write_quantized`], and any error that `progress` returns.
    fn write_quantized(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
        folder: &Path,
        progress: &mut dyn FnMut(LoadProgress) -> Result<(), Error>,
    ) -> Result<(), Error>;

    /// Calls `take` with the name and shape of each parameter.
    fn parameter_shapes(&self, take: &mut dyn FnMut(&str, Shape));

    /// Calls `take` with the name of each weight and its size in bytes, in its current format.
    fn weight_bytes_of_each(&self, take: &mut dyn FnMut(&str, usize));

    /// Returns the size of all weights in bytes, in their current formats.
    fn weight_bytes(&self) -> usize {
        let mut sum = 0;
        self.weight_bytes_of_each(&mut |_, bytes| sum += bytes);
        sum
    }

    /// Returns the dtype of the embedding table. All matrices that are not quantised have this dtype.
    fn embedding_dtype(&self) -> DType;
}

impl<M: Model + Module + 'static> AssembledModel for M {
    fn load(
        self: Box<Self>,
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn AssembledModel>, CheckpointError> {
        Ok(Box::new(checkpoint.load(*self, options, progress)?))
    }

    fn fill_random(
        self: Box<Self>,
        options: &LoadOptions<'_>,
        seed: u64,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn AssembledModel>, FormatError> {
        Ok(Box::new(fill_random(*self, options, seed, progress)?))
    }

    fn memory_per_tensor(
        &self,
        options: &LoadOptions<'_>,
        checkpoint: Option<&Checkpoint>,
        device: &Device,
        take: &mut dyn FnMut(&str, WeightMemory),
    ) {
        options.memory_per_tensor(self, checkpoint, device, take);
    }

    fn unused(&self, checkpoint: &Checkpoint, options: &LoadOptions<'_>) -> Vec<String> {
        checkpoint.unused(self, options)
    }

    fn write_quantized(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
        folder: &Path,
        progress: &mut dyn FnMut(LoadProgress) -> Result<(), Error>,
    ) -> Result<(), Error> {
        write_quantized(checkpoint, self, options, folder, progress)
    }

    fn parameter_shapes(&self, take: &mut dyn FnMut(&str, Shape)) {
        struct Shapes<'a>(&'a mut dyn FnMut(&str, Shape));
        impl ParameterVisitor for Shapes<'_> {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                (self.0)(name, param.lazy_shape());
            }

            fn visit_packed(&mut self, name: &str, weight: &PackedWeight) {
                (self.0)(name, weight.dims().into());
            }
        }
        visit_parameters(self, &mut Shapes(take));
    }

    fn weight_bytes_of_each(&self, take: &mut dyn FnMut(&str, usize)) {
        struct WeightBytes<'a>(&'a mut dyn FnMut(&str, usize));
        impl ParameterVisitor for WeightBytes<'_> {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                // A parameter that is not initialised yet takes no memory.
                if param.is_initialized() {
                    (self.0)(name, param.lazy_shape().num_elements() * param.base().dtype().size());
                }
            }

            fn visit_packed(&mut self, name: &str, weight: &PackedWeight) {
                (self.0)(name, weight.bytes());
            }
        }
        visit_parameters(self, &mut WeightBytes(take));
    }

    fn embedding_dtype(&self) -> DType {
        struct Embedding(Option<DType>);
        impl ParameterVisitor for Embedding {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                if name.ends_with("embed_tokens.weight") {
                    self.0 = Some(param.val().dtype());
                }
            }
        }
        let mut embedding = Embedding(None);
        visit_parameters(self, &mut embedding);
        embedding.0.unwrap_or(DType::F32)
    }
}
