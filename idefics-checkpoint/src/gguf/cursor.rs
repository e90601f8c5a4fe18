//! Reads a file from front to back.

use super::GgufFault;
use super::error::shorten;

/// The unread rest of a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Reads the next `n` bytes. Error messages call them `what`.
    pub(super) fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], GgufFault> {
        if n > self.left() {
            let (what, offset) = (what.to_owned(), self.at as u64);
            return Err(GgufFault::Truncated { what, offset, needed: n, left: self.left() });
        }
        let start = self.at;
        self.at += n as usize; // `n` is at most `left`, which fits into usize
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufFault> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("`take` returns N bytes"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufFault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufFault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count, and checks that the rest of the file has room for that many items of at least `smallest` bytes
    /// each.
    pub(super) fn count(&mut self, what: &str, smallest: u64) -> Result<u64, GgufFault> {
        let offset = self.at as u64;
        let count = self.u64(what)?;
        match count.checked_mul(smallest) {
            Some(needed) if needed <= self.left() => Ok(count),
            needed => {
                let (what, left) = (format!("{what} ({count})"), self.left());
                Err(GgufFault::Truncated { what, offset, needed: needed.unwrap_or(u64::MAX), left })
            }
        }
    }

    /// Reads the bytes of a string.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8], GgufFault> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// Reads a name of 1 to `limit` bytes.
    pub(super) fn name(&mut self, what: &str, limit: usize) -> Result<&'a str, GgufFault> {
        let offset = self.at as u64;
        let bytes = self.string(what)?;
        let bad = |found: String, expected: String| GgufFault::Value { what: what.to_owned(), offset, found, expected };
        if bytes.is_empty() || bytes.len() > limit {
            return Err(bad(format!("{} bytes long", bytes.len()), format!("1 to {limit} bytes")));
        }
        std::str::from_utf8(bytes).map_err(|_| bad(shorten(&String::from_utf8_lossy(bytes)), "UTF-8".to_owned()))
    }
}
