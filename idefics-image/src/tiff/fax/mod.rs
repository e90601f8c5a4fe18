//! CCITT fax: rows of runs, group 3 in one and two dimensions, group 4.
//!
//! Damaged rows come out as libtiff mends them: what is missing of a row is filled up, what is too long is cut, and
//! group 3 goes on at the next end-of-line code. Group 3 data that ends before its rows do is refused; group 4 data that
//! ends early leaves the rest as it was. Of the row above, whatever stands behind its end is kept, since damaged rows look
//! there.
//!
//! Source: ITU-T T.4 and T.6; `tif_fax3.c` and `tif_fax3.h` of libtiff 4.7.

mod bits;
mod codes;
mod row;

use self::bits::Bits;
use self::row::{End, Row};
use super::TiffError;

/// How the rows of a file are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Runs alone; rows start at bytes, or at even bytes of the file.
    Runs { is_word_aligned: bool },
    /// With end-of-line codes; `has_references` if rows may be coded by the row above.
    Group3 { has_references: bool },
    /// By the row above alone.
    Group4,
}

impl Coding {
    /// How many runs of a row of `width` pixels are kept. Twice that many are counted in 32 bits.
    fn room(self, width: usize) -> Result<usize, TiffError> {
        let has_references = matches!(self, Self::Group4 | Self::Group3 { has_references: true });
        let room = || {
            let room = u32::try_from(width).ok()?.checked_add(1)?.checked_next_multiple_of(32)?;
            let room = room.checked_mul(if has_references { 2 } else { 1 })?;
            room.checked_mul(2).and(usize::try_from(room).ok())
        };
        room().ok_or_else(|| too_wide(width))
    }

    /// Bytes of the runs of two rows of `width` pixels, which decoding keeps.
    pub(super) fn run_bytes(self, width: usize) -> Result<u64, TiffError> {
        Ok((self.room(width)? as u64).saturating_mul(2 * size_of::<u32>() as u64))
    }
}

fn too_wide(width: usize) -> TiffError {
    TiffError::damaged(format!("a row of CCITT data has {width} pixels, more than its runs can be counted for"))
}

/// Decodes the strips or tiles of a picture.
#[derive(Debug)]
pub(super) struct Fax {
    coding: Coding,
    is_reversed: bool,
    row_bytes: usize,
    /// The file has no end-of-line codes, as group 3 data has shown.
    has_no_ends: bool,
    row: Row,
    above: Row,
    is_swapped: bool,
}

/// Why a strip is given up.
enum Fault {
    Ended,
    /// The row has more runs than libtiff has room for.
    TooManyRuns,
    /// Group 3 data has no end-of-line code: read again without.
    NoEnds,
}

impl Fax {
    /// `width` is that of a strip or tile, in pixels; `is_reversed` says that bits are read from the lowest.
    pub(super) fn new(coding: Coding, width: usize, is_reversed: bool) -> Result<Self, TiffError> {
        let room = coding.room(width)?;
        let row = || i32::try_from(width).map(|width| Row::new(width, room)).map_err(|_| too_wide(width));
        Ok(Self {
            coding,
            is_reversed,
            row_bytes: width.div_ceil(8),
            has_no_ends: false,
            row: row()?,
            above: row()?,
            is_swapped: false,
        })
    }

    /// Fills the rows of `out`, a bit a pixel, 1 for black. `offset` is where `data` begins in the file.
    pub(super) fn decode(&mut self, data: &[u8], offset: usize, out: &mut [u8]) -> Result<(), TiffError> {
        if self.is_swapped {
            self.swap();
        }
        self.above.clear_to_white();
        let (mut bits, mut end) = (Bits::new(data, self.is_reversed), End::Pixel);
        let row_bytes = self.row_bytes;
        for (index, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            let mut result = self.decode_row(&mut bits, &mut end, offset, out);
            if matches!(result, Err(Fault::NoEnds)) {
                self.has_no_ends = true;
                (bits, end) = (Bits::new(data, self.is_reversed), End::Pixel);
                result = self.decode_row(&mut bits, &mut end, offset, out);
            }
            match result {
                Ok(()) => {}
                // Group 4 data may end early, but not at once.
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
                self.row.read_runs(bits)?;
                self.row.write(out);
                if is_word_aligned { bits.align_to_word(offset) } else { bits.align_to_byte() }
            }
            Coding::Group3 { has_references } => {
                if !self.has_no_ends {
                    find_end(bits, *end)?;
                }
                let is_alone = !has_references || {
                    bits.need(1)?;
                    let tag = bits.peek(1);
                    bits.skip(1);
                    tag == 1
                };
                *end = if is_alone { self.row.read_runs(bits)? } else { self.row.read_moves(bits, &self.above)? };
                self.row.write(out);
                if has_references {
                    // Where there is no room for a last change there is none.
                    let _ = self.row.close();
                    self.swap();
                }
            }
            Coding::Group4 => {
                let result = self.row.read_moves(bits, &self.above);
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

/// Goes on behind the next end-of-line code, of which the row before may have taken the zeros.
fn find_end(bits: &mut Bits<'_>, last: End) -> Result<(), Fault> {
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
        bits.need(8).map_err(|_| Fault::NoEnds)?;
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
