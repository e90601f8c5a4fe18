//! Why a model could not be brought from the hub.

use std::{
    fmt, io,
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
    /// The system gives no thread to download on.
    Limit,
    /// The caller ended it.
    Cancelled,
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
    #[error("cannot reach {url} for {file} of {repo}: {}; check the connection and HF_ENDPOINT", in_words(source))]
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
    #[error(
        "{file} of {repo} broke off after {done} bytes ({url}): {}; run again to go on from there",
        in_words(source)
    )]
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
    /// A file was downloaded whole, but its contents are not those that the hub announced. They were removed.
    #[error(
        "{file} of {repo} from {url} is not what the hub announced: expected {expected}, found {found}; nothing of it \
         was kept; run again, and check the network and HF_ENDPOINT if that does not help"
    )]
    WrongContents {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The server.
        url: String,
        /// Name and hexadecimal digits of the announced hash.
        expected: String,
        /// Name and hexadecimal digits of the hash of what came.
        found: String,
    },
    /// The server sends a git-lfs pointer and not the file that it stands for.
    #[error(
        "{file} of {repo} at {url} is a git-lfs pointer, not the file itself; whoever runs the server has to fetch it \
         (git lfs pull), or set HF_ENDPOINT to another"
    )]
    LfsPointer {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What was asked for.
        url: String,
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
    #[error("{action} {}: {}", path.display(), in_words(source))]
    FileSystem {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The cache lacks a file and cannot be written.
    #[error(
        "the hub cache {} has no {file} of {repo} and cannot be written ({}: {}); set HF_HUB_CACHE to a folder that \
         you may write to, or HF_HUB_OFFLINE=1 to use what is there",
        cache_dir.display(),
        path.display(),
        in_words(source)
    )]
    ReadOnlyCache {
        /// The repository.
        repo: String,
        /// The file that is missing.
        file: String,
        /// The cache.
        cache_dir: PathBuf,
        /// What could not be written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no thread to download on.
    #[error("no thread to download on: {}", in_words(source))]
    Thread {
        /// What the system says.
        source: io::Error,
    },
    /// The caller ended the download; what has come is kept.
    #[error("the download was cancelled; run again to go on from there")]
    Cancelled,
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
            | HubError::BadResponse { .. }
            | HubError::WrongContents { .. } => HubErrorKind::Network,
            HubError::InvalidId { .. }
            | HubError::RepoNotFound { .. }
            | HubError::RevisionNotFound { .. }
            | HubError::FileNotFound { .. } => HubErrorKind::NotFound,
            HubError::Unauthorized { .. } => HubErrorKind::Unauthorized,
            HubError::NoCacheFolder | HubError::FileSystem { .. } | HubError::ReadOnlyCache { .. } => {
                HubErrorKind::FileSystem
            }
            HubError::NotCached { .. } => HubErrorKind::Offline,
            HubError::PickleRefused { .. }
            | HubError::ShardName { .. }
            | HubError::BadIndex { .. }
            | HubError::LfsPointer { .. } => HubErrorKind::Rejected,
            HubError::Thread { .. } => HubErrorKind::Limit,
            HubError::Cancelled => HubErrorKind::Cancelled,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            HubError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            HubError::WrongContents { .. } => false, // a file may be large
            error => error.kind() == HubErrorKind::Network,
        }
    }
}

/// `org/name` may as well have been meant as a folder.
pub(crate) fn no_folder(repo: &str) -> String {
    if Path::new(repo).exists() { String::new() } else { format!(", and there is no folder {repo} here") }
}

/// Whether something cannot be written for lack of permission.
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// An error of the system or the HTTP client without numbers and names of types.
fn in_words(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("io: ").unwrap_or(&text);
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words.to_owned(),
        _ => text.to_owned(),
    }
}

pub(crate) fn file_system(action: &'static str, path: &Path, source: io::Error) -> HubError {
    HubError::FileSystem { action, path: path.to_owned(), source }
}
