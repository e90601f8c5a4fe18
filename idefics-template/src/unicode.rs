//! Character classes with Python's definitions.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// White space as in `str.isspace`, `str.strip` and `\s`.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}

/// Whether `\w` of Python's `re` matches: letters, digits and `_`.
pub(crate) fn is_word(character: char) -> bool {
    character == '_' || is_alpha(character) || is_numeric(character)
}

/// Whether `str.isalpha` holds: the letter categories of Unicode.
pub(crate) fn is_alpha(character: char) -> bool {
    use GeneralCategory::{LowercaseLetter, ModifierLetter, OtherLetter, TitlecaseLetter, UppercaseLetter};
    match character.is_ascii() {
        true => character.is_ascii_alphabetic(),
        false => matches!(
            character.general_category(),
            LowercaseLetter | ModifierLetter | OtherLetter | TitlecaseLetter | UppercaseLetter
        ),
    }
}

/// Whether `str.isdecimal` holds: the decimal digits of all scripts.
pub(crate) fn is_decimal(character: char) -> bool {
    match character.is_ascii() {
        true => character.is_ascii_digit(),
        false => character.general_category() == GeneralCategory::DecimalNumber,
    }
}

/// Converts a decimal digit of any script to an ASCII digit. The ten digits of a script have consecutive code points.
pub(crate) fn decimal(character: char) -> Option<char> {
    if !is_decimal(character) {
        return None;
    }
    let before = |code: &u32| char::from_u32(*code).is_some_and(is_decimal);
    let code = u32::from(character);
    let row = (0..code).rev().take(100).take_while(before).count();
    char::from_digit(row as u32 % 10, 10)
}

/// Whether `str.isdigit` holds: decimal digits, superscripts, subscripts and circled digits.
pub(crate) fn is_digit(character: char) -> bool {
    is_decimal(character)
        || matches!(character, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}' | '\u{2074}'..='\u{2079}'
            | '\u{2080}'..='\u{2089}' | '\u{2460}'..='\u{2468}' | '\u{2474}'..='\u{247c}' | '\u{2488}'..='\u{2490}'
            | '\u{24ea}' | '\u{24f5}'..='\u{24fd}' | '\u{24ff}' | '\u{2776}'..='\u{277e}' | '\u{2780}'..='\u{2788}'
            | '\u{278a}'..='\u{2792}' | '\u{1369}'..='\u{1371}' | '\u{19da}')
}

/// Whether `str.isnumeric` holds: characters with a numeric value. Only the common ideographs are covered.
pub(crate) fn is_numeric(character: char) -> bool {
    match character.is_ascii() {
        true => character.is_ascii_digit(),
        false => {
            character.is_numeric() || "〇一二三四五六七八九十百千万億兆零壱弐参拾壹贰叁肆伍陆柒捌玖".contains(character)
        }
    }
}

/// Whether `str.isprintable` holds. `repr` escapes all other characters.
pub(crate) fn is_printable(character: char) -> bool {
    use GeneralCategory::{
        Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Surrogate, Unassigned,
    };
    match character.is_ascii() {
        true => matches!(character, ' '..='~'),
        false => !matches!(
            character.general_category(),
            Control
                | Format
                | LineSeparator
                | ParagraphSeparator
                | PrivateUse
                | SpaceSeparator
                | Surrogate
                | Unassigned
        ),
    }
}

/// Whether the lexer accepts a character in a name: one that `\w` matches or `str.isidentifier` accepts.
pub(crate) fn is_name_char(character: char) -> bool {
    is_word(character) || continues_identifier(character)
}

/// Whether `str.isidentifier` holds.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(starts_identifier) && characters.all(continues_identifier)
}

fn starts_identifier(character: char) -> bool {
    character == '_'
        || is_alpha(character)
        || (!character.is_ascii() && character.general_category() == GeneralCategory::LetterNumber)
        // `Other_ID_Start`
        || matches!(character, '\u{1885}' | '\u{1886}' | '\u{2118}' | '\u{212e}')
}

fn continues_identifier(character: char) -> bool {
    use GeneralCategory::{ConnectorPunctuation, NonspacingMark, SpacingMark};
    starts_identifier(character)
        || is_decimal(character)
        || (!character.is_ascii()
            && matches!(character.general_category(), ConnectorPunctuation | NonspacingMark | SpacingMark))
        // `Other_ID_Continue`
        || matches!(character, '\u{b7}' | '\u{387}' | '\u{1369}'..='\u{1371}' | '\u{19da}')
}

/// Line breaks recognised by `str.splitlines`.
pub(crate) fn is_line_break(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Converts the first letter of a word to title case, as `str.title` and `str.capitalize` do.
pub(crate) fn to_title(character: char) -> impl Iterator<Item = char> {
    let code = u32::from(character);
    let single = match character {
        '\u{1c4}'..='\u{1c6}' => Some('\u{1c5}'),
        '\u{1c7}'..='\u{1c9}' => Some('\u{1c8}'),
        '\u{1ca}'..='\u{1cc}' => Some('\u{1cb}'),
        '\u{1f1}'..='\u{1f3}' => Some('\u{1f2}'),
        // Greek letters with iota subscript.
        '\u{1f80}'..='\u{1faf}' => char::from_u32(code | 8),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(code + 9),
        '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}' => Some(character),
        _ => None,
    };
    let mut letters: Vec<char> = match single {
        Some(single) => vec![single],
        None => character.to_uppercase().collect(),
    };
    match character {
        '\u{149}' => {}
        '\u{1fb0}'..='\u{1fff}' => {
            if let [_, .., last @ 'Ι'] = &mut letters[..] {
                *last = '\u{345}';
            }
        }
        _ => {
            for letter in letters.iter_mut().skip(1) {
                *letter = letter.to_lowercase().next().unwrap_or(*letter);
            }
        }
    }
    letters.into_iter()
}
