//! Decodes the coefficients of one block, for each kind of scan.
//!
//! Damaged data is decoded as in libjpeg: an invalid code counts as the symbol 0, a coefficient beyond the last
//! position overwrites the last coefficient, and sums wrap around.

use super::bits::{Bits, extend};
use super::huffman::Table;
use super::markers::ZIGZAG;

/// The coefficients of one block, in row-major order, lowest frequencies first.
pub(super) type Block = [i16; 64];

/// Rows of blocks of one component.
#[derive(Debug)]
pub(super) struct Plane<'a> {
    /// The coefficients of each block.
    pub(super) blocks: &'a mut [Block],
    /// For each block, a bit mask of the nonzero AC coefficients: bit `k` is position `k` in zigzag order. Only
    /// maintained for progressive files, otherwise empty.
    pub(super) nonzero: &'a mut [u64],
}

/// A block of a progressive file with its entry in [`Plane::nonzero`].
#[derive(Debug)]
pub(super) struct ProgressiveBlock<'a> {
    pub(super) block: &'a mut Block,
    pub(super) nonzero: &'a mut u64,
}

impl ProgressiveBlock<'_> {
    /// Writes the coefficient at zigzag position `at`. Positions above 63 mean 63.
    #[inline(always)]
    fn set(&mut self, at: usize, value: i16) {
        self.block[usize::from(ZIGZAG[at])] = value;
        let at = at.min(63);
        *self.nonzero = *self.nonzero & !(1 << at) | u64::from(value != 0) << at;
    }

    /// Reads one more bit of each coefficient in the mask `places`. `one` is the value of that bit. The coefficients
    /// must not be 0.
    #[inline(always)]
    fn refine(&mut self, bits: &mut Bits<'_>, one: i16, mut places: u64) {
        while places != 0 {
            bits.refill_if_low();
            let count = places.count_ones().min(32);
            let mut ones = bits.take(count) << (32 - count);
            for _ in 0..count {
                let coefficient = &mut self.block[usize::from(ZIGZAG[places.trailing_zeros() as usize])];
                places &= places - 1;
                // Branchless, because these bits are nearly random and branches would be mispredicted.
                let is_missing = i16::from(*coefficient & one == 0) & (ones >> 31) as i16;
                let sign = *coefficient >> 15 | 1;
                *coefficient = coefficient.wrapping_add(sign * one * is_missing);
                ones <<= 1;
            }
        }
    }
}

/// Reads the difference between a DC coefficient and the previous DC coefficient.
#[inline(always)]
fn dc_difference(bits: &mut Bits<'_>, table: &Table) -> i32 {
    bits.refill_if_low();
    let entry = table.peek(bits);
    if entry.value != 0 {
        bits.skip(u32::from(entry.length));
        return i32::from(entry.value);
    }
    match u32::from(table.finish(entry, bits)) {
        0 => 0,
        size => bits.take_signed(size & 15),
    }
}

/// Decodes a whole block of a sequential scan. `block` must contain only zeros.
#[inline(always)]
pub(super) fn sequential(bits: &mut Bits<'_>, dc: &Table, ac: &Table, last_dc: &mut i32, block: &mut Block) {
    *last_dc = last_dc.wrapping_add(dc_difference(bits, dc));
    block[0] = *last_dc as i16;
    let mut at = 1;
    while at < 64 {
        bits.refill_if_low();
        let entry = ac.peek(bits);
        if entry.value != 0 {
            bits.skip(u32::from(entry.length));
            at += usize::from(entry.symbol >> 4);
            block[usize::from(ZIGZAG[at])] = entry.value;
            at += 1;
            continue;
        }
        let symbol = ac.finish(entry, bits);
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            at += run;
            block[usize::from(ZIGZAG[at])] = bits.take_signed(size) as i16;
            at += 1;
        } else if run == 15 {
            at += 16;
        } else {
            break;
        }
    }
}

/// Decodes the upper bits of a DC coefficient, in the first scan of a progressive file.
#[inline(always)]
pub(super) fn dc_first(bits: &mut Bits<'_>, dc: &Table, last_dc: &mut i32, low_bit: u8, block: &mut Block) {
    *last_dc = last_dc.wrapping_add(dc_difference(bits, dc));
    block[0] = (*last_dc << low_bit) as i16;
}

/// Decodes one more bit of a DC coefficient, in a refinement scan.
#[inline(always)]
pub(super) fn dc_refined(bits: &mut Bits<'_>, low_bit: u8, block: &mut Block) {
    block[0] |= i16::from(bits.bit()) << low_bit;
}

/// The spectral band of a progressive AC scan: first and last zigzag position, and the lowest bit that the scan
/// contains.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    pub(super) first: u8,
    pub(super) last: u8,
    pub(super) low_bit: u8,
}

/// Decodes the upper bits of a band, in the first scan of the band. The coefficients of the band must be 0 before.
/// `eob_run` is the number of blocks, including this one, that have no more coefficients in the band.
#[inline(always)]
pub(super) fn ac_first(
    bits: &mut Bits<'_>,
    ac: &Table,
    band: Band,
    eob_run: &mut u32,
    mut block: ProgressiveBlock<'_>,
) {
    if *eob_run > 0 {
        *eob_run -= 1;
        return;
    }
    let mut at = usize::from(band.first);
    while at <= usize::from(band.last) {
        bits.refill_if_low();
        let entry = ac.peek(bits);
        if entry.value != 0 {
            bits.skip(u32::from(entry.length));
            at += usize::from(entry.symbol >> 4);
            block.set(at, entry.value << band.low_bit);
            at += 1;
            continue;
        }
        let symbol = ac.finish(entry, bits);
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            at += run;
            block.set(at, (extend(bits.take(size), size) << band.low_bit) as i16);
            at += 1;
        } else if run == 15 {
            at += 16;
        } else {
            *eob_run = read_eob_run(bits, run as u32) - 1;
            return;
        }
    }
}

/// Decodes one more bit of a band, in a refinement scan: one bit of each nonzero coefficient, and the coefficients
/// that become nonzero with this bit.
#[inline(always)]
pub(super) fn ac_refined(
    bits: &mut Bits<'_>,
    ac: &Table,
    band: Band,
    eob_run: &mut u32,
    mut block: ProgressiveBlock<'_>,
) {
    let (mut at, last) = (usize::from(band.first), usize::from(band.last));
    let in_band = u64::MAX >> (63 - last);
    let one = 1_i16 << band.low_bit;
    if *eob_run == 0 {
        while at <= last {
            bits.refill_if_low();
            let symbol = ac.symbol(bits);
            let (run, size) = (symbol >> 4, symbol & 15);
            let value = match size {
                0 if run != 15 => {
                    *eob_run = read_eob_run(bits, u32::from(run));
                    break;
                }
                0 => 0,
                _ if bits.bit() => one,
                _ => -one,
            };
            // Skip `run` zero coefficients and stop at the next zero; refine the nonzero coefficients on the way.
            let rest = in_band & u64::MAX << at;
            let mut zeros = !*block.nonzero & rest;
            for _ in 0..run {
                zeros &= zeros.wrapping_sub(1);
            }
            let target = if zeros == 0 { last + 1 } else { zeros.trailing_zeros() as usize };
            let passed = if zeros == 0 { rest } else { rest & ((1 << target) - 1) };
            block.refine(bits, one, *block.nonzero & passed);
            if value != 0 {
                block.set(target, value);
            }
            at = target + 1;
        }
    }
    if *eob_run > 0 {
        if at <= last {
            block.refine(bits, one, *block.nonzero & in_band & u64::MAX << at);
        }
        *eob_run -= 1;
    }
}

/// Reads an end-of-band run: the number of blocks, including this one, that have no more coefficients in the band. It
/// is `2^run` plus the next `run` bits. `run` is below 15. No refill is needed: at least 32 bits were loaded before the
/// symbol was read, and the symbol has at most 17 bits.
#[inline(always)]
fn read_eob_run(bits: &mut Bits<'_>, run: u32) -> u32 {
    (1 << run) + if run > 0 { bits.take(run) } else { 0 }
}
