//! Errors of downloads from the hub.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// The category of a [`HubError`]. The command-line program derives its exit code from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubErrorKind {
    /// The server could not be reached, the connection was lost, or the response was invalid.
    Network,
    /// The repository, revision or file does not exist, or the id is not valid.
    NotFound,
    /// The server requires a token, or rejected the given one.
    Unauthorized,
    /// The cache could not be read or written.
    FileSystem,
    /// Offline mode is on and the model is not in the cache.
    Offline,
    /// The weights of the repository, or their index, are not accepted.
    Rejected,
    /// The download thread could not be started.
    Limit,
    /// The caller cancelled the download.
    Cancelled,
}

/// An error while fetching a model from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name of the repository or of the revision is not valid.
    #[error("{id:?} is not a hub id; expected org/name or org/name@revision")]
    InvalidId {
        /// The invalid id, `{repo}@{revision}`, cut after 200 characters.
        id: String,
    },
    /// The given name is not the name of a GGUF file in the top folder of a repository.
    #[error(
        "{name:?} of {repo} is not a GGUF file; expected the name of a GGUF file in the top folder of the repository"
    )]
    GgufName {
        /// The repository, `org/name`.
        repo: String,
        /// The name, cut after 200 characters.
        name: String,
    },
    /// The server could not be reached or did not answer.
    #[error("cannot reach {url} for {file} of {repo}: {}; check the connection and HF_ENDPOINT", plain_message(source))]
    Unreachable {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// The requested URL, without its query.
        url: String,
        /// The error of the HTTP client.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A download was interrupted. The bytes received so far are kept.
    #[error(
        "the download of {file} of {repo} from {url} was interrupted after {done} bytes: {}; run again to resume",
        plain_message(source)
    )]
    Interrupted {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// The requested URL, without its query.
        url: String,
        /// Number of bytes of the file that are in the cache.
        done: u64,
        /// The error of the connection.
        source: io::Error,
    },
    /// The server answered with an error status.
    #[error("{url} returned HTTP {status} for {file} of {repo}; try again later")]
    Status {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// The requested URL, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server's response does not follow the hub's protocol.
    #[error("{url} {fault} when asked for {file} of {repo}; check HF_ENDPOINT")]
    BadResponse {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// The requested URL, without its query.
        url: String,
        /// What the server did wrong, as a verb phrase such as `sent a web page`.
        fault: &'static str,
    },
    /// A file was downloaded completely, but its hash differs from the hash that the hub announced. The file was
    /// deleted.
    #[error(
        "{file} of {repo} from {url} has the wrong hash: expected {expected}, found {found}; the file was deleted; run \
         again, and if that does not help, check the network and HF_ENDPOINT"
    )]
    WrongContents {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// Base URL of the server.
        url: String,
        /// The hash that the hub announced: algorithm and hexadecimal digits.
        expected: String,
        /// The hash of the downloaded contents: algorithm and hexadecimal digits.
        found: String,
    },
    /// The server sent a git-lfs pointer instead of the file itself.
    #[error(
        "{file} of {repo} at {url} is a Git LFS pointer, not the file itself; run `git lfs pull` on the server, or set \
         HF_ENDPOINT to another server"
    )]
    LfsPointer {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// The requested URL, without its query.
        url: String,
    },
    /// The repository does not exist.
    #[error("the hub has no model {repo} ({url}){}; check the name", no_folder_hint(repo))]
    RepoNotFound {
        /// The repository, `org/name`.
        repo: String,
        /// The requested URL, without its query.
        url: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no revision {revision:?} ({url}); give a branch, a tag or a full commit")]
    RevisionNotFound {
        /// The repository, `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The requested URL, without its query.
        url: String,
    },
    /// The repository lacks a file that every model needs, or a shard that its index lists.
    #[error("{repo}@{revision} at {endpoint} has no {file}; a model cannot be loaded without it")]
    FileNotFound {
        /// The repository, `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The file, relative to the repository.
        file: String,
        /// Base URL of the server.
        endpoint: String,
    },
    /// The repository has only PyTorch files, and these are not allowed.
    #[error(
        "{repo}@{revision} has {file} but no safetensors; pass --allow-pickle to download and read PyTorch pickles \
         (no code in them is executed)"
    )]
    PickleRefused {
        /// The repository, `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The weights file, or the index of its shards.
        file: &'static str,
    },
    /// The server denied access to the repository.
    #[error("{url} returned HTTP {status} for {file} of {repo}: {advice}")]
    Unauthorized {
        /// The repository, `org/name`.
        repo: String,
        /// The file, relative to the repository.
        file: String,
        /// The requested URL, without its query.
        url: String,
        /// 401 or 403.
        status: u16,
        /// Advice on how to get access.
        advice: String,
    },
    /// Offline mode is on and a file is not in the cache.
    #[error(
        "{repo}@{revision} is not in the cache {} ({missing} is missing) and HF_HUB_OFFLINE is set{}; unset it to \
         download, or give a model folder",
        cache_dir.display(),
        no_folder_hint(repo)
    )]
    NotCached {
        /// The repository, `org/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The first missing file, or `the revision`.
        missing: String,
        /// The cache that was searched.
        cache_dir: PathBuf,
    },
    /// The location of the cache is unknown.
    #[error("cannot find a home folder for the hub cache; set HF_HOME or HF_HUB_CACHE")]
    NoCacheFolder,
    /// The cache could not be read or written.
    #[error("{action} {}: {}", path.display(), plain_message(source))]
    FileSystem {
        /// What failed, for example `cannot write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file is not in the cache, and the cache cannot be written.
    #[error(
        "the hub cache {} has no {file} of {repo} and cannot be written ({}: {}); set HF_HUB_CACHE to a writable \
         folder, or HF_HUB_OFFLINE=1 to use only the cache",
        cache_dir.display(),
        path.display(),
        plain_message(source)
    )]
    ReadOnlyCache {
        /// The repository, `org/name`.
        repo: String,
        /// The missing file.
        file: String,
        /// Folder of the cache.
        cache_dir: PathBuf,
        /// The file or folder that could not be written.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The download thread could not be started.
    #[error("cannot start a thread for the download: {}", plain_message(source))]
    Thread {
        /// The error of the operating system.
        source: io::Error,
    },
    /// The caller cancelled the download. The bytes received so far are kept.
    #[error("the download was cancelled; run again to resume")]
    Cancelled,
    /// The index lists a file outside the top folder of the repository, or a file of another format.
    #[error("{index} of {repo} lists {shard:?}; expected a plain file name that ends in {ending}")]
    ShardName {
        /// The repository, `org/name`.
        repo: String,
        /// The index file.
        index: &'static str,
        /// The listed name, cut after 100 characters.
        shard: String,
        /// The expected file name extension.
        ending: &'static str,
    },
    /// The index is not valid.
    #[error("{index} of {repo} is not a checkpoint index: {fault}")]
    BadIndex {
        /// The repository, `org/name`.
        repo: String,
        /// The index file.
        index: &'static str,
        /// What is wrong with the index.
        fault: String,
    },
}

impl HubError {
    /// Returns the category of the error.
    pub fn kind(&self) -> HubErrorKind {
        match self {
            HubError::Unreachable { .. }
            | HubError::Interrupted { .. }
            | HubError::Status { .. }
            | HubError::BadResponse { .. }
            | HubError::WrongContents { .. } => HubErrorKind::Network,
            HubError::InvalidId { .. }
            | HubError::GgufName { .. }
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

    /// Returns whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            HubError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            HubError::WrongContents { .. } => false, // a large file must not be downloaded again automatically
            error => error.kind() == HubErrorKind::Network,
        }
    }
}

/// Returns text to append to the message for a repository that was not found: it says that there is no local folder
/// `repo` either, in case a folder was meant. The text is empty if the path exists.
pub(crate) fn no_folder_hint(repo: &str) -> String {
    if Path::new(repo).exists() { String::new() } else { format!(", and there is no folder {repo} here") }
}

/// Returns whether a write failed for lack of permission.
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Returns the message of a system or HTTP client error, without the error number and type names.
fn plain_message(error: &impl fmt::Display) -> String {
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
