//! Writing the files of a checkpoint, one after the other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use serde_json::json;

use crate::{CheckpointError, NamedTensor, write_atomically};

/// A shard is written when it has as many bytes; they are held in memory until then.
const SHARD_BYTES: usize = 1 << 29;

/// Writes a checkpoint: one file, or shards of about half a gibibyte with their index.
#[derive(Debug)]
pub struct ShardWriter<'a, 'b> {
    folder: &'a Path,
    current: Vec<NamedTensor<'b>>,
    current_bytes: usize,
    /// Names of the tensors of each shard that is written.
    names: Vec<Vec<String>>,
    total_bytes: usize,
}

impl<'a, 'b> ShardWriter<'a, 'b> {
    /// Writes into a folder that is there.
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, current: Vec::new(), current_bytes: 0, names: Vec::new(), total_bytes: 0 }
    }

    /// Takes a tensor; a shard is written when it is full.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
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

    /// Gives the files their names, which say how many there are, and writes the index.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        if !self.current.is_empty() {
            self.flush()?;
        }
        let n_shards = self.names.len();
        let name_of = |shard: usize| match n_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1),
        };
        for shard in 0..n_shards {
            let path: PathBuf = self.folder.join(name_of(shard));
            std::fs::rename(self.folder.join(format!("shard-{shard}")), &path)
                .map_err(|source| CheckpointError::Write { path, source })?;
        }
        if n_shards == 1 {
            return Ok(());
        }
        let shards = self.names.iter().enumerate();
        let weight_map: BTreeMap<&str, String> =
            shards.flat_map(|(shard, names)| names.iter().map(move |name| (name.as_str(), name_of(shard)))).collect();
        let index = json!({"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map});
        write_atomically(&self.folder.join("model.safetensors.index.json"), |file| {
            serde_json::to_writer_pretty(file, &index).map_err(Into::into)
        })
    }
}

/// Writes a file that nobody looks for yet: it is renamed, or its folder is, once all are there.
fn write_tensors(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<(), CheckpointError> {
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    // Readers that look for it treat a file without the format as not theirs.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let write = || {
        // The library's file is its owner's alone; this one has the permissions of any new file.
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
