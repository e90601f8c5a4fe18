//! Writes files atomically.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::CheckpointError;

/// Writes a file atomically: it appears complete or not at all. Once this function returns `Ok`, the file survives a
/// power failure.
///
/// # Errors
/// [`CheckpointError::Write`] with the system's error: an existing file at `path` is unchanged.
/// [`CheckpointError::Sync`] if the complete file is at `path`, but the system cannot promise that it survives a power
/// failure.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let attempt = || {
        let file = new_file_builder().tempfile_in(folder)?;
        let mut writer = BufWriter::new(file.as_file());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    };
    attempt().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })?;
    // Makes the rename survive a power failure.
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| CheckpointError::Sync { path: path.to_owned(), source })
}

/// Returns a builder of temporary files with the permissions of ordinary new files. By default, `tempfile` gives access
/// to the owner only.
fn new_file_builder() -> tempfile::Builder<'static, 'static> {
    #[allow(unused_mut)]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // the system applies the umask
    builder
}
