//! Progress reports of downloads.

/// Progress of a download. Bytes from an earlier, interrupted run count as done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubProgress {
    /// The current file, relative to the repository.
    pub file: String,
    /// Number of bytes of this file that are in the cache.
    pub file_done: u64,
    /// Size of this file in bytes, if the server sends it.
    pub file_total: Option<u64>,
    /// Number of bytes downloaded of all files. Files that were in the cache before are not counted.
    pub done: u64,
    /// Total size in bytes of all files to download. The index of a sharded checkpoint is downloaded first, and the
    /// shards are included only after that.
    pub total: u64,
    /// Whether this process is waiting for another one that is downloading the file. Reported once a second.
    pub is_waiting: bool,
}
