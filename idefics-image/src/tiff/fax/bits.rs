//! Bits of fax data, the first one lowest.

/// Reads bits as libtiff does: what is asked for at the end of the data is filled up with zeros, as long as one bit is
/// left.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// Whether the bits of a byte are read from the lowest.
    is_reversed: bool,
    at: usize,
    window: u32,
    count: i32,
}

/// The data has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended;

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], is_reversed: bool) -> Self {
        Self { data, is_reversed, at: 0, window: 0, count: 0 }
    }

    /// Makes sure of `n` bits, at most 16.
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

    /// The next `n` bits, which stay.
    pub(super) fn peek(&self, n: u32) -> usize {
        (self.window & ((1 << n) - 1)) as usize
    }

    pub(super) fn skip(&mut self, n: u32) {
        self.window >>= n;
        self.count -= n.cast_signed();
    }

    /// Goes on to the next byte.
    pub(super) fn align_to_byte(&mut self) {
        self.skip((self.count & 7).cast_unsigned());
    }

    /// Goes on to the next even byte of the file; the data begins at `offset`.
    pub(super) fn align_to_word(&mut self, offset: usize) {
        self.skip((self.count & 15).cast_unsigned());
        if self.count == 0 && !(offset + self.at).is_multiple_of(2) {
            self.at += 1;
        }
    }
}
