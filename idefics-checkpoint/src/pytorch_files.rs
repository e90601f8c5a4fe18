//! Reads `pytorch_model.bin` or its shards as a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::files::UnexpectedFile;
use crate::map::map_file;
use crate::opened::Opened;
use crate::pickle::{self, PickleError, PickleFault, PickleTensor};
use crate::{CheckpointError, TensorEntry, index};

/// Whether PyTorch pickles are read if a folder has no safetensors.
///
/// The reader never executes a pickle. Pickles are still refused by default: a pickle is a program that other tools do
/// execute, and users should not get used to trusting such files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PicklePolicy {
    /// A pickle causes an error. Its message says how to allow or convert pickles.
    #[default]
    Refused,
    /// Pickles are read.
    Allowed,
}

const SINGLE: &str = "pytorch_model.bin";
const INDEX: &str = "pytorch_model.bin.index.json";

/// Reads the PyTorch files of a folder. Returns `None` if the folder has none.
pub(crate) fn read(folder: &Path, pickles: PicklePolicy) -> Result<Option<Opened>, CheckpointError> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    let path = match (single.exists(), index.exists()) {
        (true, _) => &single,
        (false, true) => &index,
        (false, false) => return Ok(None),
    };
    if pickles == PicklePolicy::Refused {
        return Err(CheckpointError::PickleRefused { path: path.clone() });
    }
    let opened = match path == &single {
        true => Opened::from(read_file(path, SINGLE)?),
        false => index::read(folder, path, read_file)?,
    };
    Ok(Some(opened))
}

/// Maps a file and lists its tensors.
fn read_file(path: &Path, name: &str) -> Result<BTreeMap<String, TensorEntry>, CheckpointError> {
    let map = map_file(path)?;
    if let Some(found) =
        UnexpectedFile::detect(&map).filter(|found| !matches!(found, UnexpectedFile::Zip | UnexpectedFile::Pickle))
    {
        return Err(CheckpointError::UnexpectedFile { path: path.to_owned(), found });
    }
    let tensors = pickle::parse(path, &map)?;
    // Views that are not contiguous are copied once. Together, the copies may be at most as large as the file.
    // Otherwise, many views of one storage could exhaust the memory.
    let strided = tensors.iter().filter(|tensor| !tensor.is_contiguous()).map(PickleTensor::len_bytes);
    let copied = strided.fold(0_usize, usize::saturating_add);
    if copied > map.len() {
        let (found, limit) = (copied as u64, map.len() as u64);
        let fault = PickleFault::Limit { what: "bytes of strided tensors", found, limit };
        return Err(PickleError { path: path.to_owned(), fault }.into());
    }
    let entry = |tensor: PickleTensor| {
        let is_mapped_file = tensor.is_contiguous();
        let (map, range) = match is_mapped_file {
            true => (map.clone(), tensor.byte_range()),
            false => {
                let copy =
                    copy(&tensor, &map).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
                let range = 0..copy.len();
                (copy, range)
            }
        };
        let (file, start, end) = (name.to_owned(), range.start, range.end);
        let PickleTensor { name, dtype, shape, .. } = tensor;
        Ok((name, TensorEntry { dtype, shape, file, map, start, end, is_mapped_file, rows: None }))
    };
    tensors.into_iter().map(entry).collect()
}

/// Copies the elements of a tensor, in row-major order, into anonymous memory.
fn copy(tensor: &PickleTensor, map: &Mmap) -> std::io::Result<Arc<Mmap>> {
    let bytes = tensor.bytes(map).expect("the tensor was parsed from this map");
    let mut copy = MmapMut::map_anon(bytes.len())?;
    copy.copy_from_slice(&bytes);
    Ok(Arc::new(copy.make_read_only()?))
}
