//! Entropy-coded bytes: taken out of the file in bulk, then read bit by bit.

use super::JpegError;

/// Zero bytes behind the data, so that eight bytes can always be loaded at once.
const PADDING: usize = 8;

/// The entropy-coded data of one scan, segment by segment: what lies between the markers.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    file: &'a [u8],
    /// Where reading goes on: behind `marker` if there is one.
    pub(super) at: usize,
    /// The marker that ended the last segment and that nobody has taken yet.
    pub(super) marker: Option<u8>,
    /// The current segment without its stuffing.
    data: Vec<u8>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(file: &'a [u8], at: usize) -> Self {
        Self { file, at, marker: None, data: Vec::new() }
    }

    /// Reads the bytes up to the next marker; the stuffed `ff 00` becomes `ff`, and so does `ff ff 00`.
    pub(super) fn read(&mut self) -> Result<(), JpegError> {
        const BLOCK: usize = 32;
        self.data.clear();
        let rest = &self.file[self.at..];
        let mut at = 0;
        loop {
            // Whole blocks without 0xff are copied as they are.
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

    /// Goes on in the current segment.
    pub(super) fn bits(&self, position: Position) -> Bits<'_> {
        Bits { data: &self.data, position }
    }

    /// Takes the restart marker that ended the segment, and reads the next segment. Where another marker stands, goes
    /// the way of libjpeg: on to a later marker if it is an earlier restart or none at all, over it if it is a restart
    /// far away, and no further if it is one of the next two restarts or begins something else. Returns whether there
    /// is a new segment; if not, it is empty.
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

/// Finds the next marker from `at` on and returns it with the position behind it. Other bytes are skipped.
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

/// How far a segment has been read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Position {
    /// Bytes taken into `window`; runs on behind the end of the data.
    at: usize,
    /// The next bits, from the top.
    window: u64,
    /// How many of them count.
    count: u32,
}

/// Reads bits, the highest first. Behind the end of the data there are zeros without end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    position: Position,
}

impl Bits<'_> {
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Whether more bits were taken than there are.
    #[inline(always)]
    pub(super) fn is_overrun(&self) -> bool {
        let Position { at, count, .. } = self.position;
        at * 8 - count as usize > (self.data.len() - PADDING) * 8
    }

    /// Makes at least 56 bits count.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        let Position { at, window, count } = &mut self.position;
        if let Some(bytes) = self.data.get(*at..).and_then(|rest| rest.first_chunk()) {
            *window |= u64::from_be_bytes(*bytes) >> *count;
        }
        // Bits of a byte that is only partly in are loaded again next time, over themselves.
        *at += (63 - *count as usize) >> 3;
        *count |= 56;
    }

    /// [`Self::refill`] if fewer than 32 bits count.
    #[inline(always)]
    pub(super) fn refill_if_low(&mut self) {
        if self.position.count < 32 {
            self.refill();
        }
    }

    /// The next `n` bits, which stay; 1 to 32.
    #[inline(always)]
    pub(super) fn peek(&self, n: u32) -> u32 {
        (self.position.window >> (64 - n)) as u32
    }

    /// Goes on by `n` bits.
    #[inline(always)]
    pub(super) fn skip(&mut self, n: u32) {
        self.position.window <<= n;
        self.position.count -= n;
    }

    /// The next `n` bits; 1 to 32, as many as were refilled.
    #[inline(always)]
    pub(super) fn take(&mut self, n: u32) -> u32 {
        let bits = self.peek(n);
        self.skip(n);
        bits
    }

    /// The next `n` bits as a signed number in JPEG's form: the upper half is positive, the lower negative; 1 to 15.
    #[inline(always)]
    pub(super) fn take_signed(&mut self, n: u32) -> i32 {
        extend(self.take(n), n)
    }

    /// One bit, after a refill if need be.
    #[inline(always)]
    pub(super) fn bit(&mut self) -> bool {
        self.refill_if_low();
        self.take(1) == 1
    }
}

/// What the magnitude bits mean: `2^(n-1)..2^n` are themselves, those below stand for `-(2^n - 1)..=-2^(n-1)`.
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
    fn stuffing_is_taken_out_up_to_the_marker() {
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
    fn bits_come_from_the_top_and_zeros_behind_the_end() {
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
    fn magnitudes_have_their_signs() {
        assert_eq!([extend(0, 1), extend(1, 1)], [-1, 1]);
        assert_eq!([extend(0, 3), extend(3, 3), extend(4, 3), extend(7, 3)], [-7, -4, 4, 7]);
    }
}
