//! Why a model could not be brought from the hub.

use std::{
    io,
    path::{Path, PathBuf},
};

/// The class of a [`HubError`], which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubErrorKind {
    /// The server could not be reached, broke off or answered amiss.
    Network,
    /// There is no such repository, revision or file.
    NotFound,
    /// The server wants a token, or another one.
    Unauthorized,
    /// The cache could not be read or written.
    FileSystem,
    /// The network is switched off and the cache does not have the model.
    Offline,
    /// The repository's weights, or its index of them, are not taken.
    Rejected,
}

/// Why a model could not be brought from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name of the repository or of its revision cannot be one.
    #[error("{id:?} is not a hub id: expected org/name or org/name@revision")]
    InvalidId {
        /// Both, as given.
        id: String,
    },
    /// No connection, or no answer.
    #[error("cannot reach {url} for {file} of {repo}: {source}; check the connection and HF_ENDPOINT")]
    Unreachable {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// What the HTTP client says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A download broke off; what has come is kept.
    #[error("{file} of {repo} broke off after {done} bytes ({url}): {source}; run again to go on from there")]
    Interrupted {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// Bytes that are in the cache.
        done: u64,
        /// What the connection says.
        source: io::Error,
    },
    /// The server answered with a status that is no success.
    #[error("{url} answers HTTP {status} for {file} of {repo}; try again later")]
    Status {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server does not speak the hub's protocol.
    #[error("{url} {fault}, asked for {file} of {repo}; check HF_ENDPOINT")]
    BadResponse {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        fault: &'static str,
    },
    /// There is no such repository.
    #[error("the hub has no model {repo} ({url}){}; check the name", no_folder(repo))]
    RepoNotFound {
        /// The repository.
        repo: String,
        /// What was asked for.
        url: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no revision {revision:?} ({url}); give a branch, a tag or a full commit")]
    RevisionNotFound {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// What was asked for.
        url: String,
    },
    /// The repository lacks a file that every model needs, or a shard that its index names.
    #[error("{repo}@{revision} at {endpoint} has no {file}; a model cannot be loaded without it")]
    FileNotFound {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
        /// The server.
        endpoint: String,
    },
    /// The repository has only PyTorch files, and they were not allowed.
    #[error(
        "{repo}@{revision} has {file} and no safetensors; PyTorch pickles are fetched and read only if allowed \
         (--allow-pickle; nothing in them is run)"
    )]
    PickleRefused {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file, or the index of several.
        file: &'static str,
    },
    /// The server does not let this user read the repository.
    #[error("{url} answers HTTP {status} for {file} of {repo}: {advice}")]
    Unauthorized {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// The network is switched off and the cache lacks a file.
    #[error(
        "{repo}@{revision} is not in the cache {} ({missing} is missing) and HF_HUB_OFFLINE is set{}; unset it to \
         download, or give a model folder",
        cache_dir.display(),
        no_folder(repo)
    )]
    NotCached {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The first thing that is missing.
        missing: String,
        /// The cache that was searched.
        cache_dir: PathBuf,
    },
    /// Nothing says where the cache is.
    #[error("no home folder for the hub cache; set HF_HOME or HF_HUB_CACHE")]
    NoCacheFolder,
    /// The cache could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    FileSystem {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The index names a file outside the repository's top folder, or one of another format.
    #[error("{index} of {repo} names {shard:?}; expected a plain file name that ends in {ending}")]
    ShardName {
        /// The repository.
        repo: String,
        /// The index file.
        index: &'static str,
        /// The name, at most its first 100 characters.
        shard: String,
        /// What it should end in.
        ending: &'static str,
    },
    /// The index cannot be read.
    #[error("{index} of {repo} is not a checkpoint index: {fault}")]
    BadIndex {
        /// The repository.
        repo: String,
        /// The index file.
        index: &'static str,
        /// What is wrong with it.
        fault: String,
    },
}

impl HubError {
    /// The class of the error.
    pub fn kind(&self) -> HubErrorKind {
        match self {
            HubError::Unreachable { .. }
            | HubError::Interrupted { .. }
            | HubError::Status { .. }
            | HubError::BadResponse { .. } => HubErrorKind::Network,
            HubError::InvalidId { .. }
            | HubError::RepoNotFound { .. }
            | HubError::RevisionNotFound { .. }
            | HubError::FileNotFound { .. } => HubErrorKind::NotFound,
            HubError::Unauthorized { .. } => HubErrorKind::Unauthorized,
            HubError::NoCacheFolder | HubError::FileSystem { .. } => HubErrorKind::FileSystem,
            HubError::NotCached { .. } => HubErrorKind::Offline,
            HubError::PickleRefused { .. } | HubError::ShardName { .. } | HubError::BadIndex { .. } => {
                HubErrorKind::Rejected
            }
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            HubError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            error => error.kind() == HubErrorKind::Network,
        }
    }
}

/// `org/name` may as well have been meant as a folder.
pub(super) fn no_folder(repo: &str) -> String {
    if Path::new(repo).exists() { String::new() } else { format!(", and there is no folder {repo} here") }
}

pub(super) fn file_system(action: &'static str, path: &Path, source: io::Error) -> HubError {
    HubError::FileSystem { action, path: path.to_owned(), source }
}
