//! Writes the files of a checkpoint, shard by shard.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use serde_json::json;

use crate::{CheckpointError, NamedTensor, write_atomically};

/// Size in bytes at which a shard is written. The tensors of a shard are held in memory until the shard is written.
const SHARD_BYTES: usize = 1 << 29;

/// Writes a checkpoint as one file, or as shards of about half a gibibyte with an index.
#[derive(Debug)]
pub struct ShardWriter<'a, 'b> {
    folder: &'a Path,
    current: Vec<NamedTensor<'b>>,
    current_bytes: usize,
    /// Names of the tensors in each shard written so far.
    names: Vec<Vec<String>>,
    total_bytes: usize,
}

impl<'a, 'b> ShardWriter<'a, 'b> {
    /// Creates a writer for an existing folder.
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, current: Vec::new(), current_bytes: 0, names: Vec::new(), total_bytes: 0 }
    }

    /// Adds a tensor. Writes the current shard if it is full.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] if the shard cannot be written.
    pub fn push(&mut self, tensor: NamedTensor<'b>) -> Result<(), CheckpointError> {
        self.current_bytes += tensor.bytes.len();
        self.current.push(tensor);
        if self.current_bytes >= SHARD_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        let path = self.folder.join(format!("shard-{}", self.names.len()));
        write_tensors(&path, &self.current)?;
        self.names.push(self.current.drain(..).map(|tensor| tensor.name).collect());
        self.total_bytes += std::mem::take(&mut self.current_bytes);
        Ok(())
    }

    /// Writes the last shard and the index, and gives the shards their final names, which contain the number of shards.
    /// A single shard becomes `model.safetensors` and has no index.
    ///
    /// # Errors
    /// [`CheckpointError::Write`] if a file cannot be written or renamed.
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        if !self.current.is_empty() {
            self.flush()?;
        }
        let n_shards = self.names.len();
        let file_name = |shard: usize| match n_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1),
        };
        for shard in 0..n_shards {
            let path: PathBuf = self.folder.join(file_name(shard));
            std::fs::rename(self.folder.join(format!("shard-{shard}")), &path)
                .map_err(|source| CheckpointError::Write { path, source })?;
        }
        if n_shards == 1 {
            return Ok(());
        }
        let shards = self.names.iter().enumerate();
        let weight_map: BTreeMap<&str, String> =
            shards.flat_map(|(shard, names)| names.iter().map(move |name| (name.as_str(), file_name(shard)))).collect();
        let index = json!({"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map});
        write_atomically(&self.folder.join("model.safetensors.index.json"), |file| {
            serde_json::to_writer_pretty(file, &index).map_err(Into::into)
        })
    }
}

/// Writes tensors to a file under a temporary name. [`ShardWriter::finish`] renames the file once it is complete.
fn write_tensors(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<(), CheckpointError> {
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    // Some versions of Transformers, and some other readers, reject a file without this metadata.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let write = || {
        // The `safetensors` crate makes the file readable by its owner only. Give it the permissions of a new file.
        let permissions = File::create(path)?.metadata()?.permissions();
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
            SafeTensorError::IoError(source) => source,
            other => io::Error::other(other),
        })?;
        let file = File::open(path)?;
        file.set_permissions(permissions)?;
        file.sync_all()
    };
    write().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}
