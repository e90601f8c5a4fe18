//! The coefficients of one block, as each kind of scan codes them.
//!
//! Damaged data is read as libjpeg reads it: a code that does not exist is 0, a coefficient behind the last is the
//! last, sums wrap.

use super::bits::{Bits, extend};
use super::huffman::Table;
use super::markers::ZIGZAG;

/// The coefficients of one block, row by row; lowest frequencies first.
pub(super) type Block = [i16; 64];

/// What the next symbol of a DC coefficient and its bits add to the one before.
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

/// A whole block into `block`, which is zero.
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

/// The upper bits of a DC coefficient.
#[inline(always)]
pub(super) fn dc_first(bits: &mut Bits<'_>, dc: &Table, last_dc: &mut i32, low_bit: u8, block: &mut Block) {
    *last_dc = last_dc.wrapping_add(dc_difference(bits, dc));
    block[0] = (*last_dc << low_bit) as i16;
}

/// One more bit of a DC coefficient.
#[inline(always)]
pub(super) fn dc_refined(bits: &mut Bits<'_>, low_bit: u8, block: &mut Block) {
    block[0] |= i16::from(bits.bit()) << low_bit;
}

/// A band of AC coefficients in zigzag order, and the lowest bit that a scan has of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    pub(super) first: u8,
    pub(super) last: u8,
    pub(super) low_bit: u8,
}

/// The upper bits of a band, into zeros. `empty_blocks` is how many blocks, this one included, have nothing more.
#[inline(always)]
pub(super) fn ac_first(bits: &mut Bits<'_>, ac: &Table, band: Band, empty_blocks: &mut u32, block: &mut Block) {
    if *empty_blocks > 0 {
        *empty_blocks -= 1;
        return;
    }
    let mut at = usize::from(band.first);
    while at <= usize::from(band.last) {
        bits.refill_if_low();
        let symbol = ac.symbol(bits);
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            at += run;
            block[usize::from(ZIGZAG[at])] = (extend(bits.take(size), size) << band.low_bit) as i16;
            at += 1;
        } else if run == 15 {
            at += 16;
        } else {
            *empty_blocks = end_run(bits, run as u32) - 1;
            return;
        }
    }
}

/// One more bit of a band: of the coefficients that are not 0, and those that become ±1 of that bit.
#[inline(always)]
pub(super) fn ac_refined(bits: &mut Bits<'_>, ac: &Table, band: Band, empty_blocks: &mut u32, block: &mut Block) {
    let (mut at, last) = (usize::from(band.first), usize::from(band.last));
    let one = 1_i16 << band.low_bit;
    if *empty_blocks == 0 {
        while at <= last {
            bits.refill_if_low();
            let symbol = ac.symbol(bits);
            let (mut run, size) = (symbol >> 4, symbol & 15);
            let value = match size {
                0 if run != 15 => {
                    *empty_blocks = end_run(bits, u32::from(run));
                    break;
                }
                0 => 0,
                _ if bits.bit() => one,
                _ => -one,
            };
            // To the zero behind `run` zeros; those that are not 0 get their bit on the way.
            while at <= last {
                let coefficient = &mut block[usize::from(ZIGZAG[at])];
                if *coefficient != 0 {
                    refine(bits, one, coefficient);
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                at += 1;
            }
            if value != 0 {
                block[usize::from(ZIGZAG[at])] = value;
            }
            at += 1;
        }
    }
    if *empty_blocks > 0 {
        for &place in &ZIGZAG[at.min(last + 1)..=last] {
            let coefficient = &mut block[usize::from(place)];
            if *coefficient != 0 {
                refine(bits, one, coefficient);
            }
        }
        *empty_blocks -= 1;
    }
}

#[inline(always)]
fn refine(bits: &mut Bits<'_>, one: i16, coefficient: &mut i16) {
    if bits.bit() && *coefficient & one == 0 {
        *coefficient = coefficient.wrapping_add(if *coefficient >= 0 { one } else { -one });
    }
}

/// How many blocks, from this one on, have nothing more: `2^run` and the number in the next `run` bits. `run` is below
/// 15, and 32 bits were there before the symbol of at most 17.
#[inline(always)]
fn end_run(bits: &mut Bits<'_>, run: u32) -> u32 {
    (1 << run) + if run > 0 { bits.take(run) } else { 0 }
}
