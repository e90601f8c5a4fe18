//! Bit reader for CCITT data. The first bit is the lowest bit of the returned values.

/// A reader of bits that works like libtiff: at the end of the data, missing bits are zero if at least one real bit is
/// left.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// Whether the lowest bit of a byte comes first in the data.
    is_reversed: bool,
    at: usize,
    window: u32,
    count: i32,
}

/// The error that the data has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], is_reversed: bool) -> Self {
        Self { data, is_reversed, at: 0, window: 0, count: 0 }
    }

    /// Loads at least `n` bits (at most 16).
    pub(super) fn need(&mut self, n: u32) -> Result<(), Ended> {
        let n = n.cast_signed();
        while self.count < n {
            let Some(&byte) = self.data.get(self.at) else {
                if self.count <= 0 {
                    return Err(Ended);
                }
                self.count = n;
                break;
            };
            self.at += 1;
            let byte = if self.is_reversed { byte } else { byte.reverse_bits() };
            self.window |= u32::from(byte) << self.count;
            self.count += 8;
        }
        Ok(())
    }

    /// Returns the next `n` bits without consuming them.
    pub(super) fn peek(&self, n: u32) -> usize {
        (self.window & ((1 << n) - 1)) as usize
    }

    pub(super) fn skip(&mut self, n: u32) {
        self.window >>= n;
        self.count -= n.cast_signed();
    }

    /// Skips to the next byte boundary.
    pub(super) fn align_to_byte(&mut self) {
        self.skip((self.count & 7).cast_unsigned());
    }

    /// Skips to the next 16-bit boundary of the file. `offset` is the offset of the data in the file.
    pub(super) fn align_to_word(&mut self, offset: usize) {
        self.skip((self.count & 15).cast_unsigned());
        if self.count == 0 && !(offset + self.at).is_multiple_of(2) {
            self.at += 1;
        }
    }
}
