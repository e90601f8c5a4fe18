//! Files as memory maps.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::CheckpointError;

/// Maps a regular file.
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>, CheckpointError> {
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
    // is outside what a process can prevent; the caller must not.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    Ok(Arc::new(map))
}
