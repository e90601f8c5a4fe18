//! A temporary folder for the files of the built-in model, or for links to the files of a model.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use idefics_generate::processor::describe_io_error;
use tempfile::TempDir;

use crate::failure::Failure;

/// The folder to remove when the program exits without running destructors.
static FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A folder in the system's temporary folder. It is removed when this value is dropped, or when the program exits.
pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// Creates the folder and fills it. If that fails, the error message begins with `what`.
    pub(crate) fn new(what: &str, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Self, Failure> {
        let place = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("idefics-").tempdir_in(&place).and_then(|folder| {
            *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.path().to_owned());
            fill(folder.path()).map(|()| Self { folder })
        });
        made.map_err(|error| {
            Failure::file_system(format!(
                "{what} the temporary folder {}: {}; set TMPDIR to a writable folder, or give --model a folder with \
                 all files",
                place.display(),
                describe_io_error(&error)
            ))
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folder, if there is one. Must be called before an exit that runs no destructors.
pub(crate) fn remove() {
    if let Some(folder) = FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = std::fs::remove_dir_all(folder);
    }
}
