//! Decompresses CCITT fax data: modified Huffman, group 3 (one- and two-dimensional), and group 4.
//!
//! Damaged rows are repaired as in libtiff: short rows are filled up, long rows are cut, and group 3 continues at the
//! next end-of-line code. Group 3 data that ends early is an error. Group 4 data that ends early leaves the remaining
//! rows unchanged. Old runs in the buffer after the end of a row are kept, because damaged rows below may refer to
//! them.
//!
//! Source: ITU-T T.4 and T.6; `tif_fax3.c` and `tif_fax3.h` of libtiff 4.7.

mod bits;
mod codes;
mod row;

use self::bits::Bits;
use self::row::{End, Row};
use super::TiffError;

/// The coding of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Modified Huffman: run lengths only. Rows start at byte boundaries, or at 16-bit boundaries of the file.
    Runs { is_word_aligned: bool },
    /// Group 3, with end-of-line codes. If `is_two_dimensional`, rows may be coded relative to the row above.
    Group3 { is_two_dimensional: bool },
    /// Group 4: every row is coded relative to the row above.
    Group4,
}

impl Coding {
    /// Returns the maximum number of runs of a row of `width` pixels. It is an error if twice this number does not fit
    /// into 32 bits.
    fn max_runs(self, width: usize) -> Result<usize, TiffError> {
        let is_two_dimensional = matches!(self, Self::Group4 | Self::Group3 { is_two_dimensional: true });
        let room = || {
            let room = u32::try_from(width).ok()?.checked_add(1)?.checked_next_multiple_of(32)?;
            let room = room.checked_mul(if is_two_dimensional { 2 } else { 1 })?;
            room.checked_mul(2).and(usize::try_from(room).ok())
        };
        room().ok_or_else(|| too_wide(width))
    }

    /// Returns the number of bytes that decoding needs for the runs of two rows of `width` pixels.
    pub(super) fn run_bytes(self, width: usize) -> Result<u64, TiffError> {
        Ok((self.max_runs(width)? as u64).saturating_mul(2 * size_of::<u32>() as u64))
    }
}

fn too_wide(width: usize) -> TiffError {
    TiffError::damaged(format!("a row of CCITT data has {width} pixels, which is too wide to decode"))
}

/// A decoder of the strips or tiles of an image.
#[derive(Debug)]
pub(super) struct Fax {
    coding: Coding,
    is_reversed: bool,
    row_bytes: usize,
    /// Whether the group 3 data was found to have no end-of-line codes.
    has_no_end_of_line: bool,
    row: Row,
    above: Row,
    is_swapped: bool,
}

/// Why decoding of a strip stops.
enum Fault {
    /// The data has ended.
    Ended,
    /// The row has more runs than libtiff supports.
    TooManyRuns,
    /// The group 3 data has no end-of-line codes and must be read again without them.
    NoEndOfLine,
}

impl Fax {
    /// Creates a decoder. `width` is the width of a strip or tile in pixels. `is_reversed` says that the lowest bit
    /// of a byte is first.
    pub(super) fn new(coding: Coding, width: usize, is_reversed: bool) -> Result<Self, TiffError> {
        let room = coding.max_runs(width)?;
        let row = || i32::try_from(width).map(|width| Row::new(width, room)).map_err(|_| too_wide(width));
        Ok(Self {
            coding,
            is_reversed,
            row_bytes: width.div_ceil(8),
            has_no_end_of_line: false,
            row: row()?,
            above: row()?,
            is_swapped: false,
        })
    }

    /// Fills the rows of `out`, one bit per pixel (1 is black). `offset` is the offset of `data` in the file.
    pub(super) fn decode(&mut self, data: &[u8], offset: usize, out: &mut [u8]) -> Result<(), TiffError> {
        if self.is_swapped {
            self.swap();
        }
        self.above.clear_to_white();
        let (mut bits, mut end) = (Bits::new(data, self.is_reversed), End::Pixel);
        let row_bytes = self.row_bytes;
        for (index, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            let mut result = self.decode_row(&mut bits, &mut end, offset, out);
            if matches!(result, Err(Fault::NoEndOfLine)) {
                self.has_no_end_of_line = true;
                (bits, end) = (Bits::new(data, self.is_reversed), End::Pixel);
                result = self.decode_row(&mut bits, &mut end, offset, out);
            }
            match result {
                Ok(()) => {}
                // Group 4 data may end early, but not before the second row.
                Err(Fault::Ended) if self.coding == Coding::Group4 && index > 0 => return Ok(()),
                Err(Fault::TooManyRuns) => return Err(TiffError::damaged("a row of CCITT data has too many runs")),
                Err(_) => return Err(TiffError::damaged("CCITT data ends early")),
            }
        }
        Ok(())
    }

    fn decode_row(&mut self, bits: &mut Bits<'_>, end: &mut End, offset: usize, out: &mut [u8]) -> Result<(), Fault> {
        match self.coding {
            Coding::Runs { is_word_aligned } => {
                self.row.read_one_dimensional(bits)?;
                self.row.write(out);
                if is_word_aligned { bits.align_to_word(offset) } else { bits.align_to_byte() }
            }
            Coding::Group3 { is_two_dimensional } => {
                if !self.has_no_end_of_line {
                    find_end_of_line(bits, *end)?;
                }
                let is_alone = !is_two_dimensional || {
                    bits.need(1)?;
                    let tag = bits.peek(1);
                    bits.skip(1);
                    tag == 1
                };
                *end = if is_alone {
                    self.row.read_one_dimensional(bits)?
                } else {
                    self.row.read_two_dimensional(bits, &self.above)?
                };
                self.row.write(out);
                if is_two_dimensional {
                    // If there is no space for the final change, it is omitted.
                    let _ = self.row.close();
                    self.swap();
                }
            }
            Coding::Group4 => {
                let result = self.row.read_two_dimensional(bits, &self.above);
                if !matches!(result, Err(Fault::TooManyRuns)) {
                    self.row.write(out);
                }
                if result? == End::EndOfLine {
                    return Err(Fault::Ended);
                }
                self.row.close()?;
                self.swap();
            }
        }
        Ok(())
    }

    fn swap(&mut self) {
        std::mem::swap(&mut self.row, &mut self.above);
        self.is_swapped = !self.is_swapped;
    }
}

/// Skips past the next end-of-line code. `last` says whether the previous row has already consumed the zeros of this
/// code.
fn find_end_of_line(bits: &mut Bits<'_>, last: End) -> Result<(), Fault> {
    if last == End::Pixel {
        loop {
            bits.need(11)?;
            if bits.peek(11) == 0 {
                break;
            }
            bits.skip(1);
        }
    }
    loop {
        bits.need(8).map_err(|_| Fault::NoEndOfLine)?;
        if bits.peek(8) != 0 {
            break;
        }
        bits.skip(8);
    }
    while bits.peek(1) == 0 {
        bits.skip(1);
    }
    bits.skip(1);
    Ok(())
}
