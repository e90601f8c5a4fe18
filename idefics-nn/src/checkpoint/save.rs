//! Writes a module as a checkpoint, atomically.

use std::io::Write;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use idefics_checkpoint::{
    CheckpointError, NamedTensor, QuantDtype, four_bit_tensors, int4_tensors, int8_tensors, q4_tensors,
    write_atomically,
};
use idefics_kernels::formats::Weight;
use safetensors::Dtype;

use crate::PackedWeight;
use crate::parameters::{ParameterVisitor, visit_parameters};

/// Writes every parameter of `module` to the safetensors file `path`, under its path in the module. `dtype` is F32, F16
/// or BF16, or `None` to write each parameter in its own dtype. Quantised weights are written as codes, in the layout
/// of [`write_quantized`](super::write_quantized). Weights in GGUF blocks are dequantised.
///
/// Parameters named in `left_out` are not written, for example a tied head. The file appears complete or not at all.
///
/// # Errors
/// [`CheckpointError::Write`] if the file cannot be written. [`CheckpointError::NonFinite`] if a value is not finite,
/// because such a checkpoint could not be loaded again.
///
/// # Panics
/// If `dtype`, or the dtype of a parameter, is not F32, F16 or BF16.
pub fn save<M: Module>(
    module: &M,
    path: &Path,
    dtype: impl Into<Option<DType>>,
    left_out: &[&str],
) -> Result<(), CheckpointError> {
    let mut collected = Collected { path, dtype: dtype.into(), left_out, tensors: Vec::new(), error: None };
    visit_parameters(module, &mut collected);
    if let Some(error) = collected.error {
        return Err(error);
    }
    let views = collected.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    // Some readers reject safetensors files without this `format` entry.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| CheckpointError::Write {
        path: path.to_owned(),
        source: std::io::Error::other(error.to_string()),
    })?;
    write_atomically(path, |file| file.write_all(&bytes))
}

/// The parameters of a module, copied to the host.
struct Collected<'a> {
    path: &'a Path,
    dtype: Option<DType>,
    left_out: &'a [&'a str],
    tensors: Vec<NamedTensor<'static>>,
    /// The error of the first tensor that cannot be written.
    error: Option<CheckpointError>,
}

impl ParameterVisitor for Collected<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if self.error.is_some() || self.left_out.contains(&name) {
            return;
        }
        self.push(name, param.val());
    }

    fn visit_packed(&mut self, name: &str, weight: &PackedWeight) {
        if self.error.is_some() || self.left_out.contains(&name) {
            return;
        }
        let tensors = match weight.read() {
            Weight::Blocks(_) => return self.push(name, weight.dequantize()),
            Weight::Int8(weight) => int8_tensors(name, weight),
            Weight::Q4(weight) => q4_tensors(name, weight),
            Weight::Int4(codes) => int4_tensors(name, codes, weight.read_order().as_deref()),
            Weight::FourBit(weight) => match four_bit_tensors(name, weight, QuantDtype::Float32, false) {
                Ok(tensors) => tensors,
                Err(error) => {
                    let (file, name) = (self.path.display().to_string(), name.to_owned());
                    self.error = Some(CheckpointError::Quantized { file, name, source: Box::new(error.into()) });
                    return;
                }
            },
            other => unreachable!("{} is not a packed format", other.name()),
        };
        self.tensors.extend(tensors);
    }
}

impl Collected<'_> {
    /// Adds a dense tensor.
    fn push<const D: usize>(&mut self, name: &str, values: Tensor<D>) {
        let dtype = self.dtype.unwrap_or_else(|| values.dtype());
        #[expect(clippy::disallowed_methods, reason = "a file needs the values on the host")]
        let data = values.cast(dtype).into_data();
        let is_bad = |value: &f32| !value.is_finite();
        if let Some(first) = data.iter::<f32>().position(|value| is_bad(&value)) {
            self.error = Some(CheckpointError::NonFinite {
                file: self.path.display().to_string(),
                name: name.to_owned(),
                dtype: format!("{dtype:?}"),
                count: data.iter::<f32>().filter(is_bad).count(),
                first,
            });
            return;
        }
        let (shape, bytes) = (data.shape().to_vec(), data.as_bytes().to_vec().into());
        self.tensors.push(NamedTensor { name: name.to_owned(), dtype: file_dtype(dtype), shape, bytes });
    }
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => panic!("weights can be saved as F32, F16 or BF16, not as {other:?}"),
    }
}
