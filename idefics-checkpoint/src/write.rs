//! Files that appear complete or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::CheckpointError;

/// Writes a file that appears complete or not at all, and outlives a power cut once this returns.
///
/// # Errors
/// [`CheckpointError::Write`] with the system's answer; a file that was there before is then untouched.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let attempt = || {
        let file = readable_by_all().tempfile_in(folder)?;
        let mut writer = BufWriter::new(file.as_file());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all() // the new name, too
    };
    attempt().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

/// Temporary files are their owner's alone; a result is as readable as any new file.
fn readable_by_all() -> tempfile::Builder<'static, 'static> {
    #[allow(unused_mut)]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask
    builder
}
