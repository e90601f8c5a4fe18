//! What a file may ask for.

/// Bytes of `data.pkl`: a tensor takes about three hundred.
pub(super) const MAX_PROGRAM_BYTES: usize = 16 << 20;
/// Tensors of one file; the largest public checkpoints have a few thousand.
pub(super) const MAX_TENSORS: usize = 100_000;
/// Entries of one archive: a storage a tensor, and a handful that describe the file.
pub(super) const MAX_ENTRIES: u64 = MAX_TENSORS as u64 + 100;
/// Bytes of a tensor's name, and of an entry's.
pub(super) const MAX_NAME_BYTES: usize = 1024;
