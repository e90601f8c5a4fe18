//! One file of a repository, as the server describes it.

use crate::digest::Digest;

/// What the server says of one file.
pub(crate) struct Remote {
    /// Told by servers that speak the hub's protocol.
    pub(crate) commit: Option<String>,
    /// The name of its contents in the cache.
    pub(crate) blob: String,
    /// Other contents would have another name in the cache, or another size.
    pub(crate) is_versioned: bool,
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// Told by servers that speak the hub's protocol.
    pub(crate) digest: Option<Digest>,
}

/// 40 hexadecimal digits in place of a commit or of a hash of contents (64-bit FNV-1a on 128 bits).
pub(crate) fn stand_in(parts: &[&str]) -> String {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:040x}")
}
