//! A model folder as named tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use idefics_kernels::formats::PackedFormat;

use crate::gguf::GgufModel;
use crate::opened::Opened;
use crate::{CheckpointError, CheckpointWarning, Pickles, StoredKind, TensorEntry, header, index, pickled};

/// An opened checkpoint: where every tensor lies, and the maps of the files that hold them.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    warnings: Vec<CheckpointWarning>,
}

impl Checkpoint {
    /// Opens `folder/model.safetensors`, or else the shards of `folder/model.safetensors.index.json`. A GGUF file, or a
    /// folder that has one and no other weights, is opened as [`GgufModel`] says.
    ///
    /// # Errors
    /// Any [`CheckpointError`] of a file that is missing, cannot be read, or is not what its header or index says.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        Self::open_with(folder, Pickles::Refused)
    }

    /// As [`Self::open`], and where there is neither, if `pickles` are allowed, `folder/pytorch_model.bin`, or the
    /// shards of `folder/pytorch_model.bin.index.json`.
    ///
    /// # Errors
    /// As [`Self::open`]; [`CheckpointError::Pickle`], or [`CheckpointError::PickleRefused`].
    pub fn open_with(folder: &Path, pickles: Pickles) -> Result<Self, CheckpointError> {
        if let Some(model) = GgufModel::at(folder)? {
            let Opened { tensors, warnings } = model.opened()?;
            return Ok(Self { folder: folder.to_owned(), tensors, warnings });
        }
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let Opened { tensors, warnings } = if single.exists() {
            header::read_file(&single, "model.safetensors")?.into()
        } else if index.exists() {
            index::read(folder, &index, header::read_file)?
        } else {
            match pickled::read(folder, pickles)? {
                Some(opened) => opened,
                None => return Err(CheckpointError::NotFound { folder: folder.to_owned() }),
            }
        };
        Ok(Self { folder: folder.to_owned(), tensors, warnings })
    }

    /// Warnings about the files, which can be used all the same.
    pub fn warnings(&self) -> &[CheckpointWarning] {
        &self.warnings
    }

    /// The folder that was opened.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(name)
    }

    /// Whether any of its weights is quantised.
    pub fn is_quantized(&self) -> bool {
        self.packed_formats().next().is_some()
    }

    /// The format of each weight that is quantised.
    pub fn packed_formats(&self) -> impl Iterator<Item = PackedFormat> {
        let kinds = self.tensors.keys().filter_map(|name| self.stored(name)).map(|stored| stored.kind);
        kinds.filter_map(StoredKind::packed_format)
    }
}
