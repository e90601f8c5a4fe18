//! Opens a model folder as a set of named tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use idefics_kernels::formats::PackedFormat;

use crate::gguf::GgufModel;
use crate::int4_config::Int4Packing;
use crate::opened::Opened;
use crate::{
    CheckpointError, CheckpointWarning, PicklePolicy, StoredFormat, TensorEntry, header, index, pytorch_files,
};

/// An open checkpoint: its memory-mapped files, and the location of every tensor in them.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    warnings: Vec<CheckpointWarning>,
    /// How the weights of AWQ, GPTQ or compressed-tensors are packed; `None` if the checkpoint has no such weights.
    pub(crate) int4: Option<Int4Packing>,
}

impl Checkpoint {
    /// Opens `folder/model.safetensors` or, if that does not exist, the shards listed in
    /// `folder/model.safetensors.index.json`. `folder` may also be a GGUF file, or a folder with a GGUF file and no
    /// other weights: see [`GgufModel`].
    ///
    /// # Errors
    /// [`CheckpointError`] if a file is missing, cannot be read, or contradicts its header or index, or if the weights
    /// are packed in an unsupported way.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        Self::open_with(folder, PicklePolicy::Refused)
    }

    /// Like [`Self::open`]. If the folder has no safetensors and `pickles` is [`PicklePolicy::Allowed`], opens
    /// `folder/pytorch_model.bin` or the shards listed in `folder/pytorch_model.bin.index.json`.
    ///
    /// # Errors
    /// The errors of [`Self::open`]. Also [`CheckpointError::Pickle`] if a pickle is rejected, and
    /// [`CheckpointError::PickleRefused`] if the folder has only pickles and `pickles` does not allow them.
    pub fn open_with(folder: &Path, pickles: PicklePolicy) -> Result<Self, CheckpointError> {
        if let Some(model) = GgufModel::find(folder)? {
            let Opened { tensors, warnings } = model.opened()?;
            return Ok(Self { folder: folder.to_owned(), tensors, warnings, int4: None });
        }
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let Opened { tensors, warnings } = if single.exists() {
            header::read_file(&single, "model.safetensors")?.into()
        } else if index.exists() {
            index::read(folder, &index, header::read_file)?
        } else {
            match pytorch_files::read(folder, pickles)? {
                Some(opened) => opened,
                None => return Err(CheckpointError::NotFound { folder: folder.to_owned() }),
            }
        };
        let int4 = Int4Packing::of_folder(folder, &tensors)?;
        Ok(Self { folder: folder.to_owned(), tensors, warnings, int4 })
    }

    /// Returns problems in the files that do not prevent their use.
    pub fn warnings(&self) -> &[CheckpointWarning] {
        &self.warnings
    }

    /// Returns the folder passed to [`Self::open`].
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns all tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Returns the tensor named `name`, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(name)
    }

    /// Returns whether any weight is quantised.
    pub fn is_quantized(&self) -> bool {
        self.packed_formats().next().is_some()
    }

    /// Returns the format of every quantised weight.
    pub fn packed_formats(&self) -> impl Iterator<Item = PackedFormat> {
        self.stored_kinds().filter_map(StoredFormat::packed_format)
    }

    /// Returns the storage format of every tensor. Tensors that belong to a quantised weight but do not hold its codes,
    /// such as scales, count as dense.
    pub fn stored_kinds(&self) -> impl Iterator<Item = StoredFormat> {
        let stored = |name: &String| match self.weight_of_codes(name) {
            Some(weight) => self.stored(&weight),
            None => self.stored(name),
        };
        self.tensors.keys().filter_map(stored).map(|stored| stored.kind)
    }
}
