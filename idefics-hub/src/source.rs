//! Parses the value of `--model`: a folder or a hub id.

use std::path::{Path, PathBuf};

use crate::options::expand_home;

/// The location of a model: a local folder, a repository on the Hugging Face hub, or a GGUF file of such a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A local model folder.
    Folder(PathBuf),
    /// A repository on the hub.
    Hub {
        /// The repository, `org/name`.
        repo: String,
        /// A branch, tag or commit; `None` means the branch `main`.
        revision: Option<String>,
    },
    /// A GGUF file of a repository on the hub.
    HubFile {
        /// The repository, `org/name`.
        repo: String,
        /// A branch, tag or commit; `None` means the branch `main`.
        revision: Option<String>,
        /// Name of the GGUF file.
        file: String,
    },
}

impl ModelSource {
    /// Parses the value of `--model`.
    ///
    /// The value is a folder if it exists or looks like a path: it starts with `.`, `/` or `~`, contains a backslash,
    /// or does not have exactly one `/` before the first `@`. Anything else is `org/name[@revision]`, which may be
    /// followed by `:file.gguf` for a single file. A leading `~/` is replaced by the home folder.
    pub fn parse(source: &str) -> ModelSource {
        let is_gguf = |file: &str| file.to_ascii_lowercase().ends_with(".gguf");
        let (id, file) = match source.rsplit_once(':') {
            Some((id, file)) if is_gguf(file) => (id, Some(file.to_owned())),
            _ => (source, None),
        };
        let (repo, revision) = match id.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (id, None),
        };
        let path_like = source.starts_with(['.', '/', '~']) || source.contains('\\') || repo.matches('/').count() != 1;
        if path_like || Path::new(source).exists() {
            return ModelSource::Folder(expand_home(source));
        }
        let repo = repo.to_owned();
        match file {
            None => ModelSource::Hub { repo, revision },
            Some(file) => ModelSource::HubFile { repo, revision, file },
        }
    }
}
