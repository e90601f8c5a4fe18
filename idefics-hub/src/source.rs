//! What `--model` means.

use std::path::{Path, PathBuf};

use crate::options::expand_home;

/// Where a model is: a folder, or a repository of the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A model folder on this machine.
    Folder(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, a tag or a commit; the branch `main` when not given.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// Reads the value of `--model`.
    ///
    /// What exists is a folder, as is whatever looks like a path: it starts with `.`, `/` or `~`, holds a backslash,
    /// or has not exactly one `/` before the first `@`. All else is `org/name[@revision]`. A leading `~/` becomes the
    /// home folder.
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
