//! A strict, lazy reader of checkpoints in the public layout.
//!
//! [`Checkpoint::open`] maps `model.safetensors`, or the shards that `model.safetensors.index.json` names, and parses
//! each header once; no weight is read. [`Checkpoint::load`] then fills a module, tensor by tensor, and accounts for
//! every one: whatever is missing, of the wrong shape or dtype, or not finite is an error that names it (memory-mapped
//! values are not scanned). Tensors that nobody asks for are ignored: [`Checkpoint::unused`] names them. Peak memory
//! is the loaded weights plus one tensor.
//!
//! Where there is no safetensors file, `pytorch_model.bin` or its shards are read the same way, if the caller allows
//! pickles: by a reader that runs nothing ([`pickle`]).
//!
//! [`save`] writes a module the same way, whole or not at all; [`Checkpoint::write_quantized`] writes a checkpoint
//! again in another format.
//!
//! The module's field paths are the tensors' names, so nothing is renamed on the way.

mod convert;
mod error;
mod formats;
mod header;
mod index;
mod load;
pub mod pickle;
mod pickled;
mod plan;
mod quantize;
mod random;
mod save;
mod stored;
mod warning;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;

pub use error::CheckpointError;
pub use formats::Quantization;
pub use load::{LoadOptions, LoadProgress};
pub use pickled::Pickles;
pub use plan::WeightMemory;
pub use random::fill_random;
pub use save::{save, write_atomically};
pub use warning::CheckpointWarning;

pub use crate::files::OtherFile;

/// An opened checkpoint: where every tensor lies, and the maps of the files that hold them.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    tensors: BTreeMap<String, TensorEntry>,
    warnings: Vec<CheckpointWarning>,
}

/// What the files of a checkpoint hold.
struct Opened {
    tensors: BTreeMap<String, TensorEntry>,
    warnings: Vec<CheckpointWarning>,
}

impl From<BTreeMap<String, TensorEntry>> for Opened {
    fn from(tensors: BTreeMap<String, TensorEntry>) -> Self {
        Self { tensors, warnings: Vec::new() }
    }
}

/// One tensor of a checkpoint, not yet read.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape as PyTorch has it.
    pub shape: Vec<usize>,
    /// The file's name within the folder.
    pub file: String,
    map: Arc<Mmap>,
    start: usize,
    end: usize,
    /// Whether the map is of the file, and not a copy in memory.
    is_of_file: bool,
}

impl TensorEntry {
    /// Size in the file, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The little-endian bytes in the map.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    /// Gives the tensor's pages back after it was converted: the system counts what was read of a map as memory of the
    /// process until then. What is read once more comes from the file; a copy, which would come back as zeros, stays.
    #[allow(unsafe_code)]
    fn release(&self) {
        if !self.is_of_file {
            return;
        }
        // SAFETY: nothing writes to the map, so that pages which are dropped come back from the file as they were.
        // That the system does not listen costs memory only.
        #[cfg(unix)]
        let _ = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, self.end - self.start)
        };
    }
}

impl Checkpoint {
    /// Opens `folder/model.safetensors`, or else the shards of `folder/model.safetensors.index.json`.
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
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        let Opened { tensors, warnings } = if single.exists() {
            read_file(&single, "model.safetensors")?.into()
        } else if index.exists() {
            index::read(folder, &index, read_file)?
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
}

/// Maps a regular file.
fn map_file(path: &Path) -> Result<Arc<Mmap>, CheckpointError> {
    // Asked before opening: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(CheckpointError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    if metadata.len() < 8 {
        return Err(CheckpointError::Truncated {
            path: path.to_owned(),
            what: "the header length".to_owned(),
            expected: 8,
            found: metadata.len(),
        });
    }
    // SAFETY: the map is only read, through bounds-checked slices of plain bytes. Changing the file while it is mapped
    // is outside what a process can prevent; the README says not to.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    Ok(Arc::new(map))
}

/// Maps one safetensors file and lists its tensors.
fn read_file(path: &Path, name: &str) -> Result<BTreeMap<String, TensorEntry>, CheckpointError> {
    let map = map_file(path)?;
    if let Some(found) = OtherFile::of(&map) {
        return Err(CheckpointError::OtherFile { path: path.to_owned(), found });
    }
    let tensors = header::parse(path, &map)?;
    Ok(tensors
        .into_iter()
        .map(|tensor| {
            let entry = TensorEntry {
                dtype: tensor.dtype,
                shape: tensor.shape,
                file: name.to_owned(),
                map: map.clone(),
                start: tensor.start,
                end: tensor.end,
                is_of_file: true,
            };
            (tensor.name, entry)
        })
        .collect())
}
