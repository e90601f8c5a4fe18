//! What a download reports.

/// How far a download is. Bytes that an earlier, interrupted run left count as done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubProgress {
    /// The file that is downloaded now, relative to the repository.
    pub file: String,
    /// Bytes of this file that are here.
    pub file_done: u64,
    /// Bytes of this file, when the server says how many.
    pub file_total: Option<u64>,
    /// Bytes of all files to download that are here; files that the cache had before are not counted.
    pub done: u64,
    /// Bytes of all files to download. A sharded checkpoint's index is downloaded first, and until then the shards
    /// are not in it.
    pub total: u64,
    /// Another process downloads this file, and this one waits for it: said once a second.
    pub is_waiting: bool,
}
