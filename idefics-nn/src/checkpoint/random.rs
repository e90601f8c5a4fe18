//! Random weights, to measure the speed and memory of a model shape without a checkpoint.

use std::any::Any;
use std::collections::HashMap;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use super::load::unpacked;
use super::{LoadOptions, LoadProgress};
use crate::PackedWeight;
use crate::parameters::{Matrix, ParameterMapper, ParameterVisitor, map_parameters, matrices, visit_parameters};
use idefics_kernels::formats::FormatError;

/// Standard deviation of the random weights.
const STD: f32 = 0.02;
/// Number of elements drawn by one task.
const CHUNK: usize = 1 << 16;

/// Fills every parameter of `module` with random numbers, in the formats that `options` chooses for a BF16 checkpoint.
/// The numbers are uniformly distributed, with mean 0 and standard deviation 0.02. The scales of norms become 1.
/// Weights that are already quantised are replaced like all others.
///
/// # Errors
/// The errors of [`PackedWeight::quantize`], which these numbers never cause.
pub fn fill_random<M: Module>(
    module: M,
    options: &LoadOptions<'_>,
    seed: u64,
    mut progress: impl FnMut(LoadProgress),
) -> Result<M, FormatError> {
    let mut total = Elements(0);
    visit_parameters(&module, &mut total);
    let mut filler = Filler {
        options,
        matrices: matrices(&module),
        sources: HashMap::new(),
        next_seed: seed,
        state: LoadProgress { bytes_done: 0, bytes_total: 2 * total.0 as u64 },
        progress: &mut progress,
        error: None,
    };
    let module = map_parameters(module, &mut filler);
    match filler.error {
        None => Ok(module),
        Some(error) => Err(error),
    }
}

struct Elements(usize);

impl ParameterVisitor for Elements {
    fn visit<const D: usize>(&mut self, _name: &str, param: &Param<Tensor<D>>) {
        self.0 += param.lazy_shape().num_elements();
    }

    fn visit_packed(&mut self, _name: &str, weight: &PackedWeight) {
        self.0 += weight.dims().into_iter().product::<usize>();
    }
}

struct Filler<'a> {
    options: &'a LoadOptions<'a>,
    matrices: HashMap<String, Matrix>,
    /// Tensors that other tensors are tied to, by name.
    sources: HashMap<String, Box<dyn Any>>,
    next_seed: u64,
    state: LoadProgress,
    progress: &'a mut dyn FnMut(LoadProgress),
    error: Option<FormatError>,
}

impl ParameterMapper for Filler<'_> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let n = shape.num_elements();
        self.next_seed = self.next_seed.wrapping_add(n as u64);
        let seed = self.next_seed;
        self.state.bytes_done += 2 * n as u64;
        (self.progress)(self.state);

        let id = param.id;
        let source = self.options.tied_source(path).and_then(|source| self.sources.get(source));
        if let Some(tied) = source.and_then(|source| source.downcast_ref::<Tensor<D>>()) {
            return param.transform_for_load(tied.clone(), id);
        }
        let matrix = self.matrices.get(path).copied();
        if let Some(quantization) = self.options.quantization_of(matrix, path) {
            let dims = [shape[0], shape[1]];
            match PackedWeight::quantize(&draw(n, seed, |value| value), dims, quantization, &device) {
                Ok(packed) => return packed.with_activations(self.options.activations).carry(param),
                Err(error) => self.error = Some(error),
            }
            return param;
        }
        let dtype = self.options.dtype_of(path, matrix, None, &device);
        // Norm scales are the only vectors called `weight`.
        let is_scale = D == 1 && path.ends_with("weight");
        let data = match dtype {
            _ if is_scale => TensorData::ones::<f32, _>(shape),
            DType::BF16 => TensorData::new(draw(n, seed, bf16::from_f32), shape),
            DType::F16 => TensorData::new(draw(n, seed, f16::from_f32), shape),
            _ => TensorData::new(draw(n, seed, |value| value), shape),
        };
        let tensor = Tensor::<D>::from_data(data, (&device, dtype));
        if self.options.is_tied_source(path) {
            self.sources.insert(path.to_owned(), Box::new(tensor.clone()));
        }
        param.transform_for_load(tensor, id)
    }

    fn map_packed<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.map(path, unpacked(&param))
    }
}

/// Draws `n` random numbers and converts each with `convert`. The result does not depend on the number of threads.
fn draw<T: Copy + Default + Send + Sync>(n: usize, seed: u64, convert: impl Fn(f32) -> T + Sync) -> Vec<T> {
    let mut values = vec![T::default(); n];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (index, value) in values.iter_mut().enumerate() {
            let bits = mix(seed.wrapping_add((chunk * CHUNK + index) as u64));
            let uniform = (bits >> 40) as f32 / (1u64 << 24) as f32 - 0.5; // standard deviation 1 / √12
            *value = convert(uniform * (STD * 12f32.sqrt()));
        }
    });
    values
}

/// Turns `index` into 64 pseudorandom bits with SplitMix64: <https://doi.org/10.1145/2714064.2660195>.
fn mix(index: u64) -> u64 {
    let mut bits = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
