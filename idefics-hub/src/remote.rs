//! The server's description of one file of a repository.

use crate::digest::Digest;

/// Metadata of one file, as the server sends it.
pub(crate) struct Remote {
    /// The commit of the revision. Only servers that speak the hub's protocol send it.
    pub(crate) commit: Option<String>,
    /// Name of the file's contents in the blobs folder of the cache.
    pub(crate) blob: String,
    /// Whether the blob name changes when the file's contents change.
    pub(crate) is_versioned: bool,
    /// Size in bytes, if known.
    pub(crate) size: Option<u64>,
    /// The hash of the contents. Only servers that speak the hub's protocol send it.
    pub(crate) digest: Option<Digest>,
}

/// Computes a synthetic id of 40 hexadecimal digits, for servers that send no commit or no hash. It is the 128-bit
/// FNV-1a hash of `parts`.
pub(crate) fn synthetic_id(parts: &[&str]) -> String {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:040x}")
}
