//! Writing a module as a checkpoint, whole or not at all.

use std::io::Write;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};
use idefics_checkpoint::{CheckpointError, write_atomically};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::parameters::{ParameterVisitor, visit_parameters};

/// Writes every parameter of `module` to the safetensors file `path`, in `dtype` (F32, F16 or BF16), under its name.
///
/// Names in `left_out` are not written: a tied head is its source. The file appears complete or not at all.
///
/// # Errors
/// [`CheckpointError::Write`], [`CheckpointError::NonFinite`]: a checkpoint that cannot be loaded is not written.
///
/// # Panics
/// If `dtype` is none of the three.
pub fn save<M: Module>(module: &M, path: &Path, dtype: DType, left_out: &[&str]) -> Result<(), CheckpointError> {
    let mut collected = Collected { dtype, left_out, tensors: Vec::new() };
    visit_parameters(module, &mut collected);
    let file_dtype = match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => panic!("weights are saved as F32, F16 or BF16, not {other:?}"),
    };
    for (name, data) in &collected.tensors {
        let bad = |value: &f32| !value.is_finite();
        let values: Vec<f32> = data.iter::<f32>().collect();
        if let Some(first) = values.iter().position(bad) {
            return Err(CheckpointError::NonFinite {
                file: path.display().to_string(),
                name: name.clone(),
                dtype: format!("{dtype:?}"),
                count: values.iter().filter(|value| bad(value)).count(),
                first,
            });
        }
    }
    let views = collected.tensors.iter().map(|(name, data)| {
        let view = TensorView::new(file_dtype, data.shape().to_vec(), data.as_bytes());
        (name, view.expect("the bytes are the shape's"))
    });
    // Readers that look for it treat a file without the format as not theirs.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| CheckpointError::Write {
        path: path.to_owned(),
        source: std::io::Error::other(error.to_string()),
    })?;
    write_atomically(path, |file| file.write_all(&bytes))
}

/// The parameters on the host.
struct Collected<'a> {
    dtype: DType,
    left_out: &'a [&'a str],
    tensors: Vec<(String, TensorData)>,
}

impl ParameterVisitor for Collected<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if !self.left_out.contains(&name) {
            #[expect(clippy::disallowed_methods, reason = "files hold numbers")]
            self.tensors.push((name.to_owned(), param.val().cast(self.dtype).into_data()));
        }
    }
}
