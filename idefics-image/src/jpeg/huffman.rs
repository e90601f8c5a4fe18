//! Huffman decoding with a lookup table.

use super::JpegError;
use super::bits::{Bits, extend};

/// Number of bits that index the lookup table.
const LOOKUP_BITS: u32 = 10;

/// A Huffman table as stored in the file.
#[derive(Debug, Clone)]
pub(super) struct Codes {
    /// Number of codes of each length, 1 to 16 bits.
    pub(super) counts: [u8; 16],
    /// The symbols in the order of their codes, followed by zeros.
    pub(super) symbols: [u8; 256],
}

/// A Huffman table prepared for decoding.
#[derive(Debug, Clone)]
pub(super) struct Table {
    lookup: [Entry; 1 << LOOKUP_BITS],
    /// The largest code of each length; -1 if there is none.
    last_code: [i32; 17],
    /// For each length, the number to add to a code to get the index of its symbol.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// Result of a lookup: a whole coefficient including its magnitude bits, only a symbol (`value` is 0), or the start
/// of a code that is longer than the lookup (`length` is 0).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(4))]
pub(super) struct Entry {
    /// The coefficient; 0 if the bits of the lookup do not contain a whole coefficient.
    pub(super) value: i16,
    /// The Huffman symbol: run length in the upper four bits, size in the lower four.
    pub(super) symbol: u8,
    /// Number of bits that the entry consumes.
    pub(super) length: u8,
}

impl Table {
    /// Creates a table without codes.
    pub(super) fn empty() -> Self {
        Self { lookup: [Entry::default(); 1 << LOOKUP_BITS], last_code: [-1; 17], offset: [0; 17], symbols: [0; 256] }
    }

    /// Validates the codes and builds the lookup table. The symbols of DC tables must be at most 15.
    pub(super) fn new(codes: &Codes, is_dc: bool) -> Result<Self, JpegError> {
        let bad = || JpegError::damaged("a Huffman table is invalid");
        let total: usize = codes.counts.iter().map(|&count| usize::from(count)).sum();
        if total > 256 || is_dc && codes.symbols[..total].iter().any(|&symbol| symbol > 15) {
            return Err(bad());
        }
        let mut table = Self { symbols: codes.symbols, ..Self::empty() };
        let (mut code, mut index) = (0_i32, 0_usize);
        for length in 1..=16_u32 {
            let count = usize::from(codes.counts[length as usize - 1]);
            if count > 0 {
                table.offset[length as usize] = index as i32 - code;
                for &symbol in &codes.symbols[index..index + count] {
                    if code >= 1 << length {
                        return Err(bad());
                    }
                    table.insert(code as u32, length, symbol);
                    code += 1;
                }
                index += count;
                table.last_code[length as usize] = code - 1;
            }
            code <<= 1;
        }
        Ok(table)
    }

    /// Enters one code into the lookup table.
    fn insert(&mut self, code: u32, length: u32, symbol: u8) {
        if length > LOOKUP_BITS {
            return;
        }
        let free = LOOKUP_BITS - length;
        let size = u32::from(symbol & 15);
        for rest in 0..1 << free {
            let entry = if size > 0 && size <= free {
                let value = extend(rest >> (free - size), size) as i16;
                Entry { value, symbol, length: (length + size) as u8 }
            } else {
                Entry { value: 0, symbol, length: length as u8 }
            };
            self.lookup[(code << free | rest) as usize] = entry;
        }
    }

    /// Looks up the next bits without consuming them. At least [`LOOKUP_BITS`] bits must be loaded.
    #[inline(always)]
    pub(super) fn peek(&self, bits: &Bits<'_>) -> Entry {
        self.lookup[bits.peek(LOOKUP_BITS) as usize]
    }

    /// Consumes the code of an `entry` from [`Self::peek`] that is not a whole coefficient, and returns its symbol.
    /// An invalid code consumes 17 bits and returns 0.
    #[inline(always)]
    pub(super) fn finish(&self, entry: Entry, bits: &mut Bits<'_>) -> u8 {
        if entry.length == 0 {
            return self.long_code(bits);
        }
        bits.skip(u32::from(entry.length));
        entry.symbol
    }

    /// Consumes and returns one symbol, without its magnitude bits. At least 17 bits must be loaded.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits<'_>) -> u8 {
        let entry = self.peek(bits);
        if entry.value != 0 {
            bits.skip(u32::from(entry.length) - u32::from(entry.symbol & 15));
            return entry.symbol;
        }
        self.finish(entry, bits)
    }

    #[cold]
    fn long_code(&self, bits: &mut Bits<'_>) -> u8 {
        for length in LOOKUP_BITS + 1..=16 {
            let code = bits.peek(length) as i32;
            if code <= self.last_code[length as usize] {
                bits.skip(length);
                return self.symbols[(code + self.offset[length as usize]) as usize & 255];
            }
        }
        bits.skip(17);
        0
    }
}

/// Returns a default table of ITU-T T.81 annex K, for DC or AC. Slot 0 is for luminance, slot 1 for chrominance. Motion
/// JPEG files from cameras omit these tables.
pub(super) fn standard(is_dc: bool, slot: usize) -> Option<Codes> {
    let (counts, symbols): ([u8; 16], &[u8]) = match (is_dc, slot) {
        (true, 0) => ([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &DC_SYMBOLS),
        (true, 1) => ([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &DC_SYMBOLS),
        (false, 0) => ([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], &AC_LUMINANCE),
        (false, 1) => ([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119], &AC_CHROMINANCE),
        _ => return None,
    };
    let mut codes = Codes { counts, symbols: [0; 256] };
    codes.symbols[..symbols.len()].copy_from_slice(symbols);
    Some(codes)
}

const DC_SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

#[rustfmt::skip]
const AC_LUMINANCE: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
    0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

#[rustfmt::skip]
const AC_CHROMINANCE: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
    0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
    0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
    0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];
