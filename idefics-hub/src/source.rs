//! Parses the value of `--model`: a folder or a hub id.

use std::path::{Path, PathBuf};

use crate::options::expand_home;

/// The location of a model: a local folder, or a repository on the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A local model folder.
    Folder(PathBuf),
    /// A repository on the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, tag or commit; `None` means the branch `main`.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// Parses the value of `--model`.
    ///
    /// The value is a folder if it exists or looks like a path: it starts with `.`, `/` or `~`, contains a backslash,
    /// or does not have exactly one `/` before the first `@`. Anything else is `org/name[@revision]`. A leading `~/`
    /// is replaced by the home folder.
    pub fn parse(source: &str) -> ModelSource {
        let (repo, revision) = match source.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (source, None),
        };
        let path_like = source.starts_with(['.', '/', '~']) || source.contains('\\') || repo.matches('/').count() != 1;
        if path_like || Path::new(source).exists() {
            ModelSource::Folder(expand_home(source))
        } else {
            ModelSource::Hub { repo: repo.to_owned(), revision }
        }
    }
}
