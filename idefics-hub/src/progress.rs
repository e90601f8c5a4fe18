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
    /// Number of bytes of all files to download that are in the cache. Files that were complete before are not counted.
    pub done: u64,
    /// Total size in bytes of all files to download, as far as it is known. The shards of a checkpoint are included
    /// only after their index has been downloaded.
    pub total: u64,
    /// Whether this process is waiting for another process that is downloading the file. While it waits, progress is
    /// reported once a second.
    pub is_waiting: bool,
}
