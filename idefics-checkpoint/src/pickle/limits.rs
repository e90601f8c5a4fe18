//! Limits on the resources that a file may use.

/// Maximum size of `data.pkl`, in bytes. The description of a tensor takes about 300 bytes.
pub(super) const MAX_PROGRAM_BYTES: usize = 16 << 20;
/// Maximum number of tensors in a file. The largest public checkpoints have a few thousand.
pub(super) const MAX_TENSORS: usize = 100_000;
/// Maximum number of entries in an archive: one storage per tensor, and a few entries that describe the file.
pub(super) const MAX_ENTRIES: u64 = MAX_TENSORS as u64 + 100;
/// Maximum length of the name of a tensor, a storage or an entry, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 1024;
