//! One row, as alternating runs of white and black pixels.

use super::Fault;
use super::bits::{Bits, Ended};
use super::codes::{BLACK, BLACK_BITS, MODE_BITS, MODES, Mode, Run, WHITE, WHITE_BITS};

/// The runs of a row, white first. Arithmetic wraps around as in libtiff, because damaged rows can overflow.
#[derive(Debug)]
pub(super) struct Row {
    width: i32,
    /// Buffer for the run lengths, in pixels. Only the first `length` entries are valid.
    runs: Vec<u32>,
    length: usize,
    /// Number of pixels so far (`at`), and number of those pixels that do not belong to a finished run yet (`pending`).
    at: i32,
    pending: i32,
}

/// How a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The row ended at its last pixel, or because of damage.
    Pixel,
    /// The row ended with the zeros of an end-of-line code.
    EndOfLine,
}

/// An iterator over the colour changes of the row above.
struct Changes<'a> {
    runs: &'a [u32],
    next: usize,
    /// Position of the next change, in pixels.
    at: i32,
}

impl Row {
    pub(super) fn new(width: i32, room: usize) -> Self {
        Self { width, runs: vec![0; room], length: 0, at: 0, pending: 0 }
    }

    /// Resets to a row of white pixels.
    pub(super) fn clear_to_white(&mut self) {
        self.runs[..2].copy_from_slice(&[self.width.cast_unsigned(), 0]);
    }

    fn begin(&mut self) {
        (self.length, self.at, self.pending) = (0, 0, 0);
    }

    fn push(&mut self, run: i32) -> Result<(), Fault> {
        let place = self.runs.get_mut(self.length).ok_or(Fault::TooManyRuns)?;
        *place = self.pending.wrapping_add(run).cast_unsigned();
        self.length += 1;
        self.at = self.at.wrapping_add(run);
        self.pending = 0;
        Ok(())
    }

    /// Adjusts the runs so that they end exactly at the end of the row.
    fn finish(&mut self) -> Result<(), Fault> {
        if self.pending != 0 {
            self.push(0)?;
        }
        if self.at == self.width {
            return Ok(());
        }
        while self.at > self.width && self.length > 0 {
            self.length -= 1;
            self.at = self.at.wrapping_sub(self.runs[self.length].cast_signed());
        }
        if self.at < self.width {
            self.at = self.at.max(0);
            if !self.length.is_multiple_of(2) {
                self.push(0)?;
            }
            self.push(self.width - self.at)
        } else if self.at > self.width {
            self.push(self.width)?;
            self.push(0)
        } else {
            Ok(())
        }
    }

    /// Appends a final change, for the row below.
    pub(super) fn close(&mut self) -> Result<(), Fault> {
        self.push(0)
    }

    /// Reads a run of one colour. The inner `Err` contains the code that was found instead of a run.
    fn run(&mut self, bits: &mut Bits<'_>, is_white: bool) -> Result<Result<(), Run>, Fault> {
        loop {
            let (run, length) = if is_white {
                bits.need(WHITE_BITS)?;
                WHITE.0[bits.peek(WHITE_BITS)]
            } else {
                bits.need(BLACK_BITS)?;
                BLACK.0[bits.peek(BLACK_BITS)]
            };
            bits.skip(u32::from(length));
            match run {
                Run::Last(pixels) => return self.push(i32::from(pixels)).map(Ok),
                Run::More(pixels) => {
                    self.at = self.at.wrapping_add(i32::from(pixels));
                    self.pending = self.pending.wrapping_add(i32::from(pixels));
                }
                Run::EndOfLine | Run::Unknown => return Ok(Err(run)),
            }
        }
    }

    /// Reads a row that is coded as run lengths.
    pub(super) fn read_one_dimensional(&mut self, bits: &mut Bits<'_>) -> Result<End, Fault> {
        self.begin();
        let mut end = End::Pixel;
        let mut is_white = true;
        loop {
            if let Err(other) = self.run(bits, is_white)? {
                if other == Run::EndOfLine {
                    end = End::EndOfLine;
                }
                break;
            }
            if self.at >= self.width {
                break;
            }
            // Drop a pair of empty runs.
            if !is_white && self.runs[self.length - 2..self.length] == [0, 0] {
                self.length -= 2;
            }
            is_white = !is_white;
        }
        self.finish()?;
        Ok(end)
    }

    /// Reads a row that is coded relative to the row above. If the data ends, the row is completed and the error is
    /// returned.
    pub(super) fn read_two_dimensional(&mut self, bits: &mut Bits<'_>, above: &Self) -> Result<End, Fault> {
        self.begin();
        let mut changes = Changes { runs: &above.runs, next: 1, at: above.runs[0].cast_signed() };
        let result = self.read_modes(bits, &mut changes);
        if matches!(result, Ok(_) | Err(Fault::Ended)) {
            self.finish()?;
        }
        result
    }

    fn read_modes(&mut self, bits: &mut Bits<'_>, changes: &mut Changes<'_>) -> Result<End, Fault> {
        while self.at < self.width {
            if self.length >= self.runs.len() {
                return Err(Fault::TooManyRuns);
            }
            bits.need(MODE_BITS)?;
            let (meaning, length) = MODES.0[bits.peek(MODE_BITS)];
            bits.skip(u32::from(length));
            match meaning {
                Mode::Pass => {
                    changes.find_b1(self)?;
                    changes.step(1)?;
                    self.pending = self.pending.wrapping_add(changes.at.wrapping_sub(self.at));
                    self.at = changes.at;
                    changes.step(0)?;
                }
                Mode::Horizontal => {
                    let is_white = self.length.is_multiple_of(2);
                    if self.run(bits, is_white)?.is_err() || self.run(bits, !is_white)?.is_err() {
                        return Ok(End::Pixel);
                    }
                    changes.find_b1(self)?;
                }
                Mode::Vertical(offset) => {
                    changes.find_b1(self)?;
                    if offset < 0 && changes.at < self.at.wrapping_sub(offset) {
                        return Ok(End::Pixel);
                    }
                    self.push(changes.at.wrapping_sub(self.at).wrapping_add(offset))?;
                    if offset < 0 { changes.step_back() } else { changes.step(0)? }
                }
                Mode::Extension => {
                    self.fill_up();
                    return Ok(End::Pixel);
                }
                Mode::EndOfLine => {
                    self.fill_up();
                    bits.need(4)?;
                    bits.skip(4);
                    return Ok(End::EndOfLine);
                }
            }
        }
        if self.pending != 0 {
            if self.pending.wrapping_add(self.at) < self.width {
                // The code of the colour change at the end of the row (a single 1 bit) must follow.
                bits.need(1)?;
                if bits.peek(1) == 0 {
                    return Ok(End::Pixel);
                }
                bits.skip(1);
            }
            self.push(0)?;
        }
        Ok(End::Pixel)
    }

    /// Appends one run for the missing pixels. The position stays where it is, so [`Self::finish`] ignores this run.
    fn fill_up(&mut self) {
        self.runs[self.length] = self.width.wrapping_sub(self.at).cast_unsigned();
        self.length += 1;
    }

    /// Writes the row to `out`, one bit per pixel (1 is black). Runs that reach beyond the end of the row are cut.
    pub(super) fn write(&mut self, out: &mut [u8]) {
        if !self.length.is_multiple_of(2)
            && let Some(run) = self.runs.get_mut(self.length)
        {
            *run = 0;
        }
        let width = self.width.cast_unsigned();
        let mut x = 0;
        let length = self.length.next_multiple_of(2).min(self.runs.len());
        for (index, run) in self.runs[..length].iter_mut().enumerate() {
            if *run > width || x + *run > width {
                *run = width - x;
            }
            fill_bits(out, x as usize..(x + *run) as usize, index % 2 == 1);
            x += *run;
        }
    }
}

impl Changes<'_> {
    /// Advances to the first change that is to the right of the position of `row` and has the opposite colour (b1 in
    /// ITU-T T.4).
    fn find_b1(&mut self, row: &Row) -> Result<(), Fault> {
        if row.length > 0 {
            while self.at <= row.at && self.at < row.width {
                self.step(1)?;
                self.step(0)?;
            }
        }
        Ok(())
    }

    /// Advances by one run. At least `more` runs must follow that run.
    fn step(&mut self, more: usize) -> Result<(), Fault> {
        if self.next + more >= self.runs.len() {
            return Err(Fault::TooManyRuns);
        }
        self.at = self.at.wrapping_add(self.runs[self.next].cast_signed());
        self.next += 1;
        Ok(())
    }

    fn step_back(&mut self) {
        self.next -= 1;
        self.at = self.at.wrapping_sub(self.runs[self.next].cast_signed());
    }
}

impl From<Ended> for Fault {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

/// Sets or clears a range of bits, highest bit of a byte first.
fn fill_bits(out: &mut [u8], bits: std::ops::Range<usize>, value: bool) {
    if bits.is_empty() {
        return;
    }
    let (first, last) = (bits.start / 8, (bits.end - 1) / 8);
    let head = 0xff >> (bits.start % 8);
    let tail = 0xff << (7 - (bits.end - 1) % 8);
    let mut fill = |at: usize, mask: u8| if value { out[at] |= mask } else { out[at] &= !mask };
    if first == last {
        return fill(first, head & tail);
    }
    fill(first, head);
    fill(last, tail);
    out[first + 1..last].fill(if value { 0xff } else { 0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_any_range_of_bits() {
        for start in 0..40 {
            for end in start..40 {
                let (mut set, mut clear) = ([0; 5], [0xff; 5]);
                fill_bits(&mut set, start..end, true);
                fill_bits(&mut clear, start..end, false);
                for bit in 0..40 {
                    let is_in = (start..end).contains(&bit);
                    assert_eq!(set[bit / 8] >> (7 - bit % 8) & 1 == 1, is_in);
                    assert_eq!(clear[bit / 8] >> (7 - bit % 8) & 1 == 0, is_in);
                }
            }
        }
    }
}
