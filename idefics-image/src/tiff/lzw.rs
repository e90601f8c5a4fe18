//! Decompresses LZW data with the codes of TIFF 6.0, or with the codes of an older form that some files still use.
//!
//! Source: TIFF 6.0 section 13. For the older form and for damaged data, `tif_lzw.c` of libtiff 4.7.

use super::TiffError;

// Special codes, and the first code of the table.
const CLEAR: usize = 256;
const END: usize = 257;
const FIRST: usize = 258;
/// Maximum number of table entries in libtiff before a clear code is required. Codes can refer only to the first 4096
/// entries.
const MAX_ENTRIES: usize = 4095 + 1024;
const MIN_BITS: u32 = 9;
const MAX_BITS: u32 = 12;

/// A string of the table, given by its position in the output.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    start: usize,
    length: usize,
}

/// A decoder of strips or tiles. The first strip or tile determines which form the file uses.
#[derive(Debug)]
pub(super) struct Lzw {
    is_old: Option<bool>,
    entries: Vec<Entry>,
}

impl Lzw {
    pub(super) fn new() -> Self {
        Self { is_old: None, entries: vec![Entry::default(); MAX_ENTRIES] }
    }

    /// Decompresses `data` until `out` is full. Excess data is ignored.
    pub(super) fn decode(&mut self, data: &[u8], out: &mut [u8]) -> Result<(), TiffError> {
        let looks_old = matches!(data, [0, second, ..] if second & 1 == 1);
        if *self.is_old.get_or_insert(looks_old) {
            self.decode_codes(OldCodes { data, at: 0 }, 0, out)
        } else {
            self.decode_codes(Codes { data, at: 0 }, 1, out)
        }
    }

    /// Decodes codes until `out` is full. `early` is 1 if the code length increases one entry earlier than necessary,
    /// otherwise 0.
    fn decode_codes(&mut self, mut codes: impl ReadCode, early: usize, out: &mut [u8]) -> Result<(), TiffError> {
        let ends_early = || TiffError::damaged("LZW data ends early");
        let mut written = 0;
        let mut bits = MIN_BITS;
        // The next free table entry. There is no table before the first clear code.
        let mut free = None;
        let mut last = Entry::default();
        while written < out.len() {
            let mut code = codes.next(bits).ok_or_else(ends_early)?;
            if code == CLEAR {
                bits = MIN_BITS;
                while code == CLEAR {
                    code = codes.next(bits).ok_or_else(ends_early)?;
                }
                if code > END {
                    return Err(TiffError::damaged("LZW data has a code that is not in its table"));
                }
                if code < CLEAR {
                    out[written] = code as u8;
                    last = Entry { start: written, length: 1 };
                    written += 1;
                    free = Some(FIRST);
                }
                if code != END {
                    continue;
                }
            }
            if code == END {
                return Err(ends_early());
            }
            let at = match free {
                Some(at) if code <= at && at < MAX_ENTRIES => at,
                _ => return Err(TiffError::damaged("LZW data has a code that is not in its table")),
            };
            // The new entry is the last string plus the first byte of the current string. These bytes are contiguous in
            // the output as soon as the current string has been written.
            self.entries[at] = Entry { start: last.start, length: last.length + 1 };
            free = Some(at + 1);
            if at + 1 > (1 << bits) - 1 - early {
                bits = (bits + 1).min(MAX_BITS);
            }
            let start = written;
            if code < CLEAR {
                out[written] = code as u8;
                written += 1;
            } else {
                let Entry { start, length } = self.entries[code];
                let length = length.min(out.len() - written);
                if start + length <= written {
                    out.copy_within(start..start + length, written);
                } else {
                    // The string overlaps its own output, so it is copied byte by byte.
                    for offset in 0..length {
                        out[written + offset] = out[start + offset];
                    }
                }
                written += length;
            }
            last = Entry { start, length: written - start };
        }
        Ok(())
    }
}

trait ReadCode {
    /// Returns the next code, or `None` at the end of the data.
    fn next(&mut self, bits: u32) -> Option<usize>;
}

/// A reader of codes, highest bit first. `at` is the position in bits.
struct Codes<'a> {
    data: &'a [u8],
    at: usize,
}

/// A reader of codes of the older form, lowest bit first. `at` is the position in bits.
struct OldCodes<'a> {
    data: &'a [u8],
    at: usize,
}

/// Returns the three bytes that contain a code of `bits` bits (at most 12) at bit position `at`. Returns `None` if the
/// data ends within the code.
fn three(data: &[u8], at: usize, bits: u32) -> Option<[u32; 3]> {
    if at + bits as usize > data.len() * 8 {
        return None;
    }
    let byte = |offset: usize| data.get(at / 8 + offset).map_or(0, |&byte| u32::from(byte));
    Some([byte(0), byte(1), byte(2)])
}

impl ReadCode for Codes<'_> {
    fn next(&mut self, bits: u32) -> Option<usize> {
        let [a, b, c] = three(self.data, self.at, bits)?;
        let window = (a << 16 | b << 8 | c) << (8 + self.at % 8);
        self.at += bits as usize;
        Some((window >> (32 - bits)) as usize)
    }
}

impl ReadCode for OldCodes<'_> {
    fn next(&mut self, bits: u32) -> Option<usize> {
        let [a, b, c] = three(self.data, self.at, bits)?;
        let window = (a | b << 8 | c << 16) >> (self.at % 8);
        self.at += bits as usize;
        Some((window & ((1 << bits) - 1)) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs codes, given as pairs of length and code. The highest bit is first, or the lowest bit if `is_old`.
    fn packed(codes: &[(u32, usize)], is_old: bool) -> Vec<u8> {
        let mut bits = Vec::new();
        for &(length, code) in codes {
            let code = (0..length).map(|bit| code >> bit & 1 == 1);
            if is_old { bits.extend(code) } else { bits.extend(code.rev()) }
        }
        let byte = |bits: &[bool]| {
            bits.iter().enumerate().fold(0, |byte, (at, &bit)| byte | u8::from(bit) << if is_old { at } else { 7 - at })
        };
        bits.chunks(8).map(byte).collect()
    }

    #[test]
    fn decodes_string_that_overlaps_itself() {
        for is_old in [false, true] {
            let data = packed(&[(9, CLEAR), (9, 7), (9, 258), (9, 259), (9, END)], is_old);
            assert_eq!(matches!(data[..2], [0, second] if second & 1 == 1), is_old);
            let mut out = [0; 6];
            Lzw::new().decode(&data, &mut out).unwrap();
            assert_eq!(out, [7; 6]);
            assert!(Lzw::new().decode(&data, &mut [0; 7]).is_err());
            assert!(Lzw::new().decode(&data[..3], &mut out).is_err());
        }
    }

    #[test]
    fn rejects_codes_not_in_table() {
        for codes in [&[(9, 7)][..], &[(9, CLEAR), (9, 258)], &[(9, CLEAR), (9, 7), (9, 259)]] {
            assert!(Lzw::new().decode(&packed(codes, false), &mut [0; 9]).is_err(), "{codes:?}");
        }
    }
}
