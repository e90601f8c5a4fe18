//! Verifies downloaded files against the hashes that the hub sends in `ETag` headers.
//!
//! On the hub, the entity tag of a file is a hash of its contents:
//!
//! - files in LFS or Xet storage: 64 hexadecimal digits in `X-Linked-ETag`, the SHA-256 of the contents;
//! - all other files: 40 digits, the SHA-1 of the git blob, which is `blob {length}\0` followed by the contents.
//!
//! Mirrors that store files by SHA-1 (Artifactory, for example) send 40 digits too: the SHA-1 of the contents alone. A
//! file is accepted if either SHA-1 matches. Tags of any other form are not hashes of the contents, and neither are the
//! tags of servers that do not speak the hub's protocol. Files with such tags are not verified.

use std::fmt::{self, Write as _};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A hash of a file's contents, as announced by the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digest {
    Sha256([u8; 32]),
    /// SHA-1 of the git blob, or of the contents alone.
    Sha1([u8; 20]),
}

impl Digest {
    /// Parses the opaque part of an entity tag: 64 or 40 hexadecimal digits. Returns `None` for anything else.
    pub(crate) fn from_tag(tag: &str) -> Option<Digest> {
        from_hex(tag).map(Digest::Sha256).or_else(|| from_hex(tag).map(Digest::Sha1))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Digest::Sha256(bytes) => write!(f, "SHA-256 {}", hex(bytes)),
            Digest::Sha1(bytes) => write!(f, "SHA-1 {}", hex(bytes)),
        }
    }
}

/// Returns the opaque part of an entity tag: without quotes, and without the `W/` of weak tags (RFC 9110, section
/// 8.8.3).
///
/// On the hub, a weak tag means that a proxy compressed the file. The tag still contains the hash of the uncompressed
/// contents. Tags without quotes are invalid, but occur in practice.
pub(crate) fn opaque_tag(etag: &str) -> &str {
    let etag = etag.trim();
    let tag = etag.strip_prefix("W/").or_else(|| etag.strip_prefix("w/")).unwrap_or(etag);
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag)
}

/// The running hash of the first bytes of a file.
///
/// The hash is kept between download attempts. After a lost connection, hashing continues where it stopped.
pub(crate) struct ContentsHash {
    expected: Option<Digest>,
    /// Length of the whole file in bytes, if known.
    size: Option<u64>,
    state: State,
    /// Number of bytes hashed so far.
    hashed: u64,
}

enum State {
    Unchecked,
    Sha256(Sha256),
    Sha1 { blob: Sha1, contents: Sha1 },
}

impl ContentsHash {
    /// Creates the hash of zero bytes.
    pub(crate) fn new(expected: Option<Digest>, size: Option<u64>) -> ContentsHash {
        let state = match expected {
            None => State::Unchecked,
            Some(Digest::Sha256(_)) => State::Sha256(Sha256::new()),
            Some(Digest::Sha1(_)) => {
                let header = size.map_or_else(String::new, |size| format!("blob {size}\0"));
                State::Sha1 { blob: Sha1::new_with_prefix(header), contents: Sha1::new() }
            }
        };
        ContentsHash { expected, size, state, hashed: 0 }
    }

    /// Returns whether an expected hash is known.
    pub(crate) fn is_checked(&self) -> bool {
        self.expected.is_some()
    }

    /// Returns the number of bytes hashed so far.
    pub(crate) fn position(&self) -> u64 {
        self.hashed
    }

    pub(crate) fn restart(&mut self) {
        *self = ContentsHash::new(self.expected, self.size);
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Unchecked => {}
            State::Sha256(hash) => hash.update(bytes),
            State::Sha1 { blob, contents } => {
                blob.update(bytes);
                contents.update(bytes);
            }
        }
        self.hashed += bytes.len() as u64;
    }

    /// Returns the hash to compute in a second pass over the whole file, if a second pass is needed. It is needed for a
    /// git blob whose length was not known in the first pass, because a git blob starts with its length.
    pub(crate) fn second_pass(&self) -> Option<ContentsHash> {
        let is_length_unknown = matches!(self.expected, Some(Digest::Sha1(_))) && self.size.is_none();
        is_length_unknown.then(|| ContentsHash::new(self.expected, Some(self.hashed)))
    }

    /// Compares the computed hash with the expected hash. Without an expected hash, any contents are accepted.
    ///
    /// # Errors
    /// The expected and the computed hash, if they differ.
    pub(crate) fn verify(&self) -> Result<(), (Digest, Digest)> {
        let Some(expected) = self.expected else { return Ok(()) };
        let found = match &self.state {
            State::Unchecked => return Ok(()),
            State::Sha256(hash) => vec![Digest::Sha256(hash.clone().finalize().into())],
            State::Sha1 { blob, contents } => {
                [blob, contents].map(|hash| Digest::Sha1(hash.clone().finalize().into())).to_vec()
            }
        };
        if found.contains(&expected) { Ok(()) } else { Err((expected, found[0])) }
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The output of `git hash-object`, `sha1sum` and `sha256sum` for the text `hello\n`.
    const GIT_BLOB: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA1: &str = "f572d396fae9206628714fb2ce00f72e94f2258f";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn verify(tag: &str, size: Option<u64>, contents: &[u8]) -> Result<(), (Digest, Digest)> {
        let mut hash = ContentsHash::new(Digest::from_tag(opaque_tag(tag)), size);
        for part in contents.chunks(4) {
            hash.update(part);
        }
        hash.verify()
    }

    #[test]
    fn verifies_every_kind_of_hash() {
        for hash in [GIT_BLOB, SHA1, SHA256] {
            for tag in [hash.to_owned(), format!("\"{hash}\""), format!("W/\"{hash}\""), hash.to_uppercase()] {
                assert_eq!(verify(&tag, Some(6), b"hello\n"), Ok(()), "{tag}");
                let (expected, found) = verify(&tag, Some(6), b"hellO\n").unwrap_err();
                assert!(expected.to_string().contains(hash) && expected != found, "{expected} {found}");
            }
        }
        assert!(verify(GIT_BLOB, None, b"hello\n").is_err(), "the hash of a git blob includes its length");
        assert!(ContentsHash::new(Digest::from_tag(GIT_BLOB), None).second_pass().is_some());
        assert!(ContentsHash::new(Digest::from_tag(GIT_BLOB), Some(6)).second_pass().is_none());
        assert!(ContentsHash::new(Digest::from_tag(SHA256), None).second_pass().is_none());
    }

    #[test]
    fn other_tags_are_not_hashes() {
        let md5 = "d41d8cd98f00b204e9800998ecf8427e";
        for tag in ["", "\"\"", "W/\"\"", "\"1-2\"", md5, &GIT_BLOB[1..], "\"5f3-gzip\"", &"g".repeat(40), "é"] {
            assert_eq!(Digest::from_tag(opaque_tag(tag)), None, "{tag}");
            assert_eq!(verify(tag, Some(6), b"hello\n"), Ok(()), "{tag}");
        }
    }

    proptest! {
        #[test]
        fn opaque_tag_strips_quotes_and_weak_prefix(tag in "[!#-~]{0,80}", weak in any::<bool>(), space in " {0,2}") {
            let mark = if weak { "W/" } else { "" };
            let written = format!("{space}{mark}\"{tag}\"{space}");
            prop_assert_eq!(opaque_tag(&written), tag);
        }

        #[test]
        fn opaque_tag_accepts_any_header(header in ".{0,100}") {
            let tag = opaque_tag(&header);
            prop_assert!(header.contains(tag));
            if let Some(digest) = Digest::from_tag(tag) {
                prop_assert!(digest.to_string().ends_with(&tag.to_lowercase()));
            }
        }

        #[test]
        fn hex_digests_round_trip(sha256: [u8; 32], sha1: [u8; 20]) {
            prop_assert_eq!(Digest::from_tag(&hex(&sha256)), Some(Digest::Sha256(sha256)));
            prop_assert_eq!(Digest::from_tag(&hex(&sha1)), Some(Digest::Sha1(sha1)));
        }

        #[test]
        fn detects_any_flipped_bit(
            contents in prop::collection::vec(any::<u8>(), 1..300),
            at: prop::sample::Index,
            bit in 0..8_u8,
        ) {
            let size = contents.len() as u64;
            let mut changed = contents.clone();
            changed[at.index(contents.len())] ^= 1 << bit;
            let blob = Sha1::new_with_prefix(format!("blob {size}\0")).chain_update(&contents).finalize();
            for tag in [hex(&Sha256::digest(&contents)), hex(&Sha1::digest(&contents)), hex(&blob)] {
                prop_assert!(verify(&tag, Some(size), &contents).is_ok());
                prop_assert!(verify(&tag, Some(size), &changed).is_err());
            }
        }
    }
}
