//! Decompresses ThunderScan data: 4-bit grey, coded as runs and differences.
//!
//! Source: `tif_thunder.c` of libtiff 4.7.

use super::TiffError;

/// Fills rows of `width` pixels, two pixels per byte.
pub(super) fn decode(mut data: &[u8], width: usize, out: &mut [u8]) -> Result<(), TiffError> {
    for row in out.chunks_exact_mut(width.div_ceil(2)) {
        let mut pixels = Pixels { row, width, count: 0, last: 0 };
        while pixels.count < width {
            let Some((&byte, rest)) = data.split_first() else {
                return Err(TiffError::damaged("ThunderScan data ends early"));
            };
            data = rest;
            pixels.decode(byte)?;
        }
    }
    Ok(())
}

struct Pixels<'a> {
    row: &'a mut [u8],
    width: usize,
    count: usize,
    last: u8,
}

impl Pixels<'_> {
    /// Decodes one byte: two bits of code and six bits of data.
    fn decode(&mut self, byte: u8) -> Result<(), TiffError> {
        /// The differences that two bits and three bits of data encode. `None` adds no pixel.
        const BY_TWO_BITS: [Option<i8>; 4] = [Some(0), Some(1), None, Some(-1)];
        const BY_THREE_BITS: [Option<i8>; 8] = [Some(0), Some(1), Some(2), Some(3), None, Some(-3), Some(-2), Some(-1)];
        match byte >> 6 {
            0 => {
                let length = usize::from(byte);
                if length > self.width - self.count {
                    return Err(TiffError::damaged("ThunderScan data has a run that is too long"));
                }
                (0..length).for_each(|_| self.put(self.last));
            }
            1 => [byte >> 4, byte >> 2, byte].iter().for_each(|bits| self.add(BY_TWO_BITS[usize::from(bits & 3)])),
            2 => [byte >> 3, byte].iter().for_each(|bits| self.add(BY_THREE_BITS[usize::from(bits & 7)])),
            _ => self.put(byte),
        }
        Ok(())
    }

    fn add(&mut self, difference: Option<i8>) {
        if let Some(difference) = difference {
            self.put(self.last.wrapping_add_signed(difference));
        }
    }

    /// Sets the next pixel, if the row is not full.
    fn put(&mut self, value: u8) {
        self.last = value & 15;
        if self.count < self.width {
            let byte = &mut self.row[self.count / 2];
            *byte = if self.count.is_multiple_of(2) { self.last << 4 } else { *byte | self.last };
            self.count += 1;
        }
    }
}
