//! The code words of ITU-T T.4 and T.6.

/// Meaning of a run-length code word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// A terminating code: the last part of a run length, 0 to 63.
    Last(u16),
    /// A make-up code: a multiple of 64, followed by another code of the same run.
    More(u16),
    /// Eleven zeros: the start of an end-of-line code.
    EndOfLine,
    /// The bits are not a code word.
    Unknown,
}

/// Meaning of a code word of two-dimensional coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Pass,
    Horizontal,
    /// The colour changes this many pixels to the right of the change in the row above.
    Vertical(i32),
    Extension,
    /// Seven zeros: the start of an end-of-line code.
    EndOfLine,
}

/// A lookup table for code words, indexed by the next bits of the data. The first of these bits is the lowest. An entry
/// contains the meaning of the code word and its length in bits.
pub(super) struct Table<T: 'static, const SIZE: usize>(pub(super) [(T, u8); SIZE]);

// Number of bits that are looked up for a white, a black and a two-dimensional code word.
pub(super) const WHITE_BITS: u32 = 12;
pub(super) const BLACK_BITS: u32 = 13;
pub(super) const MODE_BITS: u32 = 7;

pub(super) static WHITE: Table<Run, { 1 << WHITE_BITS }> = runs(&WHITE_WORDS);
pub(super) static BLACK: Table<Run, { 1 << BLACK_BITS }> = runs(&BLACK_WORDS);
pub(super) static MODES: Table<Mode, { 1 << MODE_BITS }> = modes();

/// `(length, code)` for the runs 0 to 63, then for 64 to 1728 in steps of 64.
type Words = [(u8, u16); 64 + 27];

const WHITE_WORDS: Words = [
    (8, 0x35),
    (6, 0x07),
    (4, 0x07),
    (4, 0x08),
    (4, 0x0b),
    (4, 0x0c),
    (4, 0x0e),
    (4, 0x0f),
    (5, 0x13),
    (5, 0x14),
    (5, 0x07),
    (5, 0x08),
    (6, 0x08),
    (6, 0x03),
    (6, 0x34),
    (6, 0x35),
    (6, 0x2a),
    (6, 0x2b),
    (7, 0x27),
    (7, 0x0c),
    (7, 0x08),
    (7, 0x17),
    (7, 0x03),
    (7, 0x04),
    (7, 0x28),
    (7, 0x2b),
    (7, 0x13),
    (7, 0x24),
    (7, 0x18),
    (8, 0x02),
    (8, 0x03),
    (8, 0x1a),
    (8, 0x1b),
    (8, 0x12),
    (8, 0x13),
    (8, 0x14),
    (8, 0x15),
    (8, 0x16),
    (8, 0x17),
    (8, 0x28),
    (8, 0x29),
    (8, 0x2a),
    (8, 0x2b),
    (8, 0x2c),
    (8, 0x2d),
    (8, 0x04),
    (8, 0x05),
    (8, 0x0a),
    (8, 0x0b),
    (8, 0x52),
    (8, 0x53),
    (8, 0x54),
    (8, 0x55),
    (8, 0x24),
    (8, 0x25),
    (8, 0x58),
    (8, 0x59),
    (8, 0x5a),
    (8, 0x5b),
    (8, 0x4a),
    (8, 0x4b),
    (8, 0x32),
    (8, 0x33),
    (8, 0x34),
    (5, 0x1b),
    (5, 0x12),
    (6, 0x17),
    (7, 0x37),
    (8, 0x36),
    (8, 0x37),
    (8, 0x64),
    (8, 0x65),
    (8, 0x68),
    (8, 0x67),
    (9, 0xcc),
    (9, 0xcd),
    (9, 0xd2),
    (9, 0xd3),
    (9, 0xd4),
    (9, 0xd5),
    (9, 0xd6),
    (9, 0xd7),
    (9, 0xd8),
    (9, 0xd9),
    (9, 0xda),
    (9, 0xdb),
    (9, 0x98),
    (9, 0x99),
    (9, 0x9a),
    (6, 0x18),
    (9, 0x9b),
];

const BLACK_WORDS: Words = [
    (10, 0x37),
    (3, 0x02),
    (2, 0x03),
    (2, 0x02),
    (3, 0x03),
    (4, 0x03),
    (4, 0x02),
    (5, 0x03),
    (6, 0x05),
    (6, 0x04),
    (7, 0x04),
    (7, 0x05),
    (7, 0x07),
    (8, 0x04),
    (8, 0x07),
    (9, 0x18),
    (10, 0x17),
    (10, 0x18),
    (10, 0x08),
    (11, 0x67),
    (11, 0x68),
    (11, 0x6c),
    (11, 0x37),
    (11, 0x28),
    (11, 0x17),
    (11, 0x18),
    (12, 0xca),
    (12, 0xcb),
    (12, 0xcc),
    (12, 0xcd),
    (12, 0x68),
    (12, 0x69),
    (12, 0x6a),
    (12, 0x6b),
    (12, 0xd2),
    (12, 0xd3),
    (12, 0xd4),
    (12, 0xd5),
    (12, 0xd6),
    (12, 0xd7),
    (12, 0x6c),
    (12, 0x6d),
    (12, 0xda),
    (12, 0xdb),
    (12, 0x54),
    (12, 0x55),
    (12, 0x56),
    (12, 0x57),
    (12, 0x64),
    (12, 0x65),
    (12, 0x52),
    (12, 0x53),
    (12, 0x24),
    (12, 0x37),
    (12, 0x38),
    (12, 0x27),
    (12, 0x28),
    (12, 0x58),
    (12, 0x59),
    (12, 0x2b),
    (12, 0x2c),
    (12, 0x5a),
    (12, 0x66),
    (12, 0x67),
    (10, 0x0f),
    (12, 0xc8),
    (12, 0xc9),
    (12, 0x5b),
    (12, 0x33),
    (12, 0x34),
    (12, 0x35),
    (13, 0x6c),
    (13, 0x6d),
    (13, 0x4a),
    (13, 0x4b),
    (13, 0x4c),
    (13, 0x4d),
    (13, 0x72),
    (13, 0x73),
    (13, 0x74),
    (13, 0x75),
    (13, 0x76),
    (13, 0x77),
    (13, 0x52),
    (13, 0x53),
    (13, 0x54),
    (13, 0x55),
    (13, 0x5a),
    (13, 0x5b),
    (13, 0x64),
    (13, 0x65),
];

/// `(length, code)` for the runs 1792 to 2560 in steps of 64, for both colours.
const LONG_WORDS: [(u8, u16); 13] = [
    (11, 0x08),
    (11, 0x0c),
    (11, 0x0d),
    (12, 0x12),
    (12, 0x13),
    (12, 0x14),
    (12, 0x15),
    (12, 0x16),
    (12, 0x17),
    (12, 0x1c),
    (12, 0x1d),
    (12, 0x1e),
    (12, 0x1f),
];

const END_OF_LINE: (u8, u16) = (11, 0);

/// Returns the table indices whose lowest bits are a code word, given as the first index and the step to the next
/// index.
const fn places((length, code): (u8, u16)) -> (usize, usize) {
    (code.reverse_bits() as usize >> (16 - length), 1 << length)
}

const fn runs<const SIZE: usize>(words: &Words) -> Table<Run, SIZE> {
    let mut table = [(Run::Unknown, 0); SIZE];
    let mut index = 0;
    while index < words.len() + LONG_WORDS.len() + 1 {
        let (word, run) = if index < 64 {
            (words[index], Run::Last(index as u16))
        } else if index < words.len() {
            (words[index], Run::More((index as u16 - 63) * 64))
        } else if index < words.len() + LONG_WORDS.len() {
            (LONG_WORDS[index - words.len()], Run::More((index as u16 - 63) * 64))
        } else {
            (END_OF_LINE, Run::EndOfLine)
        };
        let (mut place, step) = places(word);
        while place < SIZE {
            table[place] = (run, word.0);
            place += step;
        }
        index += 1;
    }
    Table(table)
}

const fn modes() -> Table<Mode, { 1 << MODE_BITS }> {
    const WORDS: [((u8, u16), Mode); 11] = [
        ((4, 1), Mode::Pass),
        ((3, 1), Mode::Horizontal),
        ((1, 1), Mode::Vertical(0)),
        ((3, 3), Mode::Vertical(1)),
        ((6, 3), Mode::Vertical(2)),
        ((7, 3), Mode::Vertical(3)),
        ((3, 2), Mode::Vertical(-1)),
        ((6, 2), Mode::Vertical(-2)),
        ((7, 2), Mode::Vertical(-3)),
        ((7, 1), Mode::Extension),
        ((7, 0), Mode::EndOfLine),
    ];
    let mut table = [(Mode::EndOfLine, 7); 1 << MODE_BITS];
    let mut index = 0;
    while index < WORDS.len() {
        let (word, meaning) = WORDS[index];
        let (mut place, step) = places(word);
        while place < table.len() {
            table[place] = (meaning, word.0);
            place += step;
        }
        index += 1;
    }
    Table(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of table entries that start with a valid code word.
    fn covered<const SIZE: usize>(table: &Table<Run, SIZE>) -> usize {
        table.0.iter().filter(|(run, _)| *run != Run::Unknown).count()
    }

    #[test]
    fn run_code_words_are_prefix_free() {
        let share = |(length, _): &(u8, u16), bits: u32| 1_usize << (bits - u32::from(*length));
        for (words, covered, bits) in
            [(&WHITE_WORDS, covered(&WHITE), WHITE_BITS), (&BLACK_WORDS, covered(&BLACK), BLACK_BITS)]
        {
            let all = words.iter().chain(&LONG_WORDS).chain([&END_OF_LINE]);
            assert_eq!(all.map(|word| share(word, bits)).sum::<usize>(), covered);
        }
    }

    #[test]
    fn two_dimensional_code_words_cover_all_bit_sequences() {
        for (place, &(meaning, length)) in MODES.0.iter().enumerate() {
            let first = (place as u8).reverse_bits() >> (8 - length);
            let expected = match (length, first) {
                (1, 1) => Mode::Vertical(0),
                (3, 1) => Mode::Horizontal,
                (4, 1) => Mode::Pass,
                (7, 0) => Mode::EndOfLine,
                (7, 1) => Mode::Extension,
                (3 | 6 | 7, 2) => Mode::Vertical(-[1, 2, 3][[3, 6, 7].iter().position(|&l| l == length).unwrap()]),
                (3 | 6 | 7, 3) => Mode::Vertical([1, 2, 3][[3, 6, 7].iter().position(|&l| l == length).unwrap()]),
                other => panic!("{other:?}"),
            };
            assert_eq!(meaning, expected);
        }
    }
}
