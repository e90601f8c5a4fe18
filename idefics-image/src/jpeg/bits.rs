//! Reads entropy-coded data: whole segments are copied without byte stuffing, then read bit by bit.

use super::JpegError;

/// Number of zero bytes appended to the data, so that eight bytes can be loaded from any position in the data.
const PADDING: usize = 8;

/// The entropy-coded data of one scan, read segment by segment. A segment is the data between two markers.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    file: &'a [u8],
    /// Position in the file where reading continues: after `marker` if there is one.
    pub(super) at: usize,
    /// The marker that ended the last segment, if it has not been consumed yet.
    pub(super) marker: Option<u8>,
    /// The current segment without byte stuffing.
    data: Vec<u8>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(file: &'a [u8], at: usize) -> Self {
        Self { file, at, marker: None, data: Vec::new() }
    }

    /// Reads the segment up to the next marker and removes byte stuffing: `ff 00` and `ff ff 00` both become `ff`.
    pub(super) fn read(&mut self) -> Result<(), JpegError> {
        const BLOCK: usize = 32;
        self.data.clear();
        let rest = &self.file[self.at..];
        let mut at = 0;
        loop {
            // Copy whole blocks that do not contain 0xff.
            let plain = rest[at..]
                .chunks_exact(BLOCK)
                .take_while(|block| !block.iter().fold(false, |found, &byte| found | (byte == 0xff)))
                .count();
            let needed = plain * BLOCK + 2 * BLOCK;
            self.data.try_reserve(needed).map_err(|_| JpegError::OutOfMemory((self.data.len() + needed) as u64))?;
            self.data.extend_from_slice(&rest[at..at + plain * BLOCK]);
            at += plain * BLOCK;
            let Some(ahead) = rest[at..].iter().take(BLOCK).position(|&byte| byte == 0xff) else {
                if rest.len() - at < BLOCK {
                    return Err(JpegError::ENDS_EARLY);
                }
                continue;
            };
            self.data.extend_from_slice(&rest[at..at + ahead]);
            at += ahead;
            let Some(fill) = rest[at..].iter().position(|&byte| byte != 0xff) else {
                return Err(JpegError::ENDS_EARLY);
            };
            let after = rest[at + fill];
            at += fill + 1;
            if after != 0 {
                self.at += at;
                self.marker = Some(after);
                break;
            }
            self.data.push(0xff);
        }
        self.data.extend_from_slice(&[0; PADDING]);
        Ok(())
    }

    /// Returns a bit reader for the current segment that continues at `position`.
    pub(super) fn bits(&self, position: Position) -> Bits<'_> {
        Bits { data: &self.data, position }
    }

    /// Consumes the restart marker that ended the segment and reads the next segment. Returns `false`, with an empty
    /// segment, if the expected restart is missing.
    ///
    /// If another marker is found, this function resynchronises like libjpeg. Restart markers are numbered modulo 8. An
    /// invalid marker or one of the two restarts before the expected one is skipped, and the next marker is examined.
    /// One of the two restarts after the expected one, or a marker that is not a restart, is left for later. Any other
    /// restart is consumed in place of the expected one.
    pub(super) fn restart(&mut self, expected: u8) -> Result<bool, JpegError> {
        while let Some(marker) = self.marker {
            let ahead = marker.wrapping_sub(expected) & 7;
            match marker {
                0xd0..=0xd7 if matches!(ahead, 1 | 2) => break,
                0xd0..=0xd7 if !matches!(ahead, 6 | 7) => self.marker = None,
                ..0xc0 | 0xd0..=0xd7 => {
                    let (marker, at) = next_marker(self.file, self.at)?;
                    (self.marker, self.at) = (Some(marker), at);
                }
                _ => break,
            }
        }
        if self.marker.is_none() {
            self.read()?;
            return Ok(true);
        }
        self.data.clear();
        self.data.resize(PADDING, 0);
        Ok(false)
    }
}

/// Finds the next marker from position `at` on. Returns the marker and the position after it. Other bytes are skipped.
pub(super) fn next_marker(file: &[u8], mut at: usize) -> Result<(u8, usize), JpegError> {
    loop {
        let rest = file.get(at..).ok_or(JpegError::ENDS_EARLY)?;
        at += rest.iter().position(|&byte| byte == 0xff).ok_or(JpegError::ENDS_EARLY)?;
        let rest = &file[at..];
        let fill = rest.iter().position(|&byte| byte != 0xff).ok_or(JpegError::ENDS_EARLY)?;
        at += fill + 1;
        if rest[fill] != 0 {
            return Ok((rest[fill], at));
        }
    }
}

/// Position of a bit reader in its segment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Position {
    /// Number of bytes loaded into `window`. It keeps counting past the end of the data.
    at: usize,
    /// The next bits, highest bit first.
    window: u64,
    /// Number of valid bits in `window`.
    count: u32,
}

/// A reader of bits, highest bit first. After the end of the data it returns zeros.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    position: Position,
}

impl Bits<'_> {
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Returns whether more bits were consumed than the data has.
    #[inline(always)]
    pub(super) fn is_overrun(&self) -> bool {
        let Position { at, count, .. } = self.position;
        at * 8 - count as usize > (self.data.len() - PADDING) * 8
    }

    /// Loads bytes until at least 56 bits are valid.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let Position { at, window, count } = &mut self.position;
        if let Some(bytes) = self.data.get(*at..).and_then(|rest| rest.first_chunk()) {
            *window |= u64::from_be_bytes(*bytes) >> *count;
        }
        // A byte that was only partly loaded is loaded again next time. The OR sets the same bits twice, which does no
        // harm.
        *at += (63 - *count as usize) >> 3;
        *count |= 56;
    }

    /// Calls [`Self::refill`] if fewer than 32 bits are valid.
    #[inline(always)]
    pub(super) fn refill_if_low(&mut self) {
        if self.position.count < 32 {
            self.refill();
        }
    }

    /// Returns the next `n` bits (1 to 32) without consuming them.
    #[inline(always)]
    pub(super) fn peek(&self, n: u32) -> u32 {
        (self.position.window >> (64 - n)) as u32
    }

    /// Consumes `n` bits.
    #[inline(always)]
    pub(super) fn skip(&mut self, n: u32) {
        self.position.window <<= n;
        self.position.count -= n;
    }

    /// Consumes and returns the next `n` bits (1 to 32). They must have been loaded.
    #[inline(always)]
    pub(super) fn take(&mut self, n: u32) -> u32 {
        let bits = self.peek(n);
        self.skip(n);
        bits
    }

    /// Consumes the next `n` bits (1 to 15) as a signed magnitude; see [`extend`].
    #[inline(always)]
    pub(super) fn take_signed(&mut self, n: u32) -> i32 {
        extend(self.take(n), n)
    }

    /// Consumes one bit, after a refill if necessary.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.refill_if_low();
        self.take(1) == 1
    }
}

/// Decodes a number `v` of `n` magnitude bits (EXTEND in ITU-T T.81). If the highest bit is 1, the result is `v`.
/// Otherwise, it is negative: `v - (2^n - 1)`.
#[inline(always)]
pub(super) fn extend(bits: u32, n: u32) -> i32 {
    let value = bits as i32;
    let negative = (value >> (n - 1)) - 1;
    value + (negative & (1 - (1 << n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_byte_stuffing_up_to_marker() {
        let mut file = vec![7; 100];
        file.extend([0xff, 0, 1, 0xff, 0xff, 0, 2, 0xff, 0xff, 0xd9, 5]);
        let mut segments = Segments::new(&file, 0);
        segments.read().unwrap();
        let expected = [vec![7; 100], vec![0xff, 1, 0xff, 2], vec![0; PADDING]].concat();
        assert_eq!((segments.data, segments.marker, segments.at), (expected, Some(0xd9), 110));
        for end in 0..110 {
            assert!(Segments::new(&file[..end], 0).read().is_err(), "{end} bytes");
        }
    }

    #[test]
    fn reads_highest_bit_first_and_zeros_after_end() {
        let data: Vec<u8> = (0..40_u8).map(|byte| byte.wrapping_mul(37)).chain([0; PADDING]).collect();
        let mut bits = Bits { data: &data, position: Position::default() };
        let mut position = 0;
        for n in (1..=16).cycle().take(60) {
            let expected = (position..position + n)
                .fold(0, |value, at| value << 1 | data.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1) as u32);
            bits.refill_if_low();
            assert_eq!(bits.take(n as u32), expected, "{n} bits at {position}");
            position += n;
            assert_eq!(bits.is_overrun(), position > 320);
        }
    }

    #[test]
    fn extends_magnitudes() {
        assert_eq!([extend(0, 1), extend(1, 1)], [-1, 1]);
        assert_eq!([extend(0, 3), extend(3, 3), extend(4, 3), extend(7, 3)], [-7, -4, 4, 7]);
    }
}
