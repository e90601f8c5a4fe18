//! A temporary folder: the built-in model is unpacked into it, or the files of a model linked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use idefics_generate::processor::io_words;
use tempfile::TempDir;

use crate::failure::Failure;

/// The folder that was made: a program that ends where it is drops nothing.
static FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A folder in the system's temporary folder, there until this is dropped or the program ends.
pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// Makes the folder and fills it; `what` cannot be done if that fails.
    pub(crate) fn new(what: &str, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Self, Failure> {
        let place = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("idefics-").tempdir_in(&place).and_then(|folder| {
            *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.path().to_owned());
            fill(folder.path()).map(|()| Self { folder })
        });
        made.map_err(|error| {
            Failure::file_system(format!(
                "{what} the temporary folder {}: {}; set TMPDIR to a folder that can be written, or give --model a folder \
                 with all files",
                place.display(),
                io_words(&error)
            ))
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folder, if there is one, before the program ends where it is.
pub(crate) fn remove() {
    if let Some(folder) = FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = std::fs::remove_dir_all(folder);
    }
}
