//! Memory-maps files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::CheckpointError;

/// Maps a regular file of at least 8 bytes, the size of the length field that starts a safetensors file.
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>, CheckpointError> {
    // The kind of file is checked before it is opened, because opening a pipe blocks until the pipe has a writer.
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
    // SAFETY: the file must not change while it is mapped. This crate never writes to the map. It cannot stop other
    // processes from changing the file, so the README tells users not to do so while a checkpoint is in use. The map is
    // read only through bounds-checked slices of bytes, for which every value is valid.
    #[allow(unsafe_code, reason = "another process may change a mapped file")]
    let map = unsafe { Mmap::map(&file) }.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    Ok(Arc::new(map))
}
