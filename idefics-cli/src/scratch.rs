//! A temporary folder for the files of the built-in model, or for links to the files of a model.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use idefics_generate::processor::describe_io_error;
use tempfile::TempDir;

use crate::failure::Failure;

/// The folder to remove when the program exits without running destructors, and the names that messages use for paths
/// in it.
static FOLDER: Mutex<Option<(PathBuf, Names)>> = Mutex::new(None);

/// Pairs of a path and its name in messages. The first name that fits is used.
type Names = Vec<(PathBuf, String)>;

/// A folder in the system's temporary folder. It is removed when this value is dropped, or when the program exits.
pub(crate) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// Creates the folder and fills it. Messages call it `name`. If that fails, the error message begins with `what`.
    pub(crate) fn new(what: &str, name: &str, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Self, Failure> {
        let place = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("idefics-").tempdir_in(&place).and_then(|folder| {
            let names = vec![(folder.path().to_owned(), name.to_owned())];
            *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some((folder.path().to_owned(), names));
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

    /// Sets the name that messages use for the file `file` of the folder.
    pub(crate) fn name_file(&self, file: &str, name: &Path) {
        if let Some((_, names)) = &mut *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) {
            names.insert(0, (self.path().join(file), name.display().to_string()));
        }
    }
}

/// Returns a message in which the temporary folder and its files have the names that the user knows.
pub(crate) fn with_names(message: &str) -> String {
    let folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    let names = folder.iter().flat_map(|(_, names)| names);
    names.fold(message.to_owned(), |message, (path, name)| message.replace(&path.display().to_string(), name))
}

/// Removes the folder, if there is one. Must be called before an exit that runs no destructors.
pub(crate) fn remove() {
    if let Some((folder, _)) = FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = std::fs::remove_dir_all(folder);
    }
}
