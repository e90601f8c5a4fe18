//! Case conversion with Python's rules.

use crate::unicode::to_title;

pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // The text is converted as a whole, because the form of a final sigma depends on the characters before it.
    let lower = text.to_lowercase();
    to_title(first).chain(lower.chars().skip(first.to_lowercase().count())).collect()
}

pub(super) fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for (index, character) in text.char_indices() {
        match in_word {
            // A sigma at the end of a word has a different lower case form.
            true if character == 'Σ' => titled.push(sigma(&text[..index], &text[index + 2..])),
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(to_title(character)),
        }
        in_word = is_cased(character);
    }
    titled
}

/// Returns the lower case form of a sigma between two texts: `ς` at the end of a word, otherwise `σ`.
fn sigma(before: &str, after: &str) -> char {
    let ends = before.chars().next_back().is_some_and(is_cased) && !after.chars().next().is_some_and(is_cased);
    if ends { 'ς' } else { 'σ' }
}

pub(super) fn is_cased(character: char) -> bool {
    character.is_uppercase() || character.is_lowercase() || is_title(character)
}

/// Whether the character is a titlecase letter: a digraph whose first part is upper case, such as `ǅ`.
pub(super) fn is_title(character: char) -> bool {
    use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
    !character.is_ascii() && character.general_category() == GeneralCategory::TitlecaseLetter
}

pub(super) fn casefold(text: &str) -> String {
    let fold = |character: char| -> String {
        match character {
            'ı' => "ı".to_owned(),
            'İ' => "i\u{307}".to_owned(),
            character => character.to_uppercase().flat_map(char::to_lowercase).collect(),
        }
    };
    text.chars().map(fold).collect()
}

pub(super) fn swap_case(text: &str) -> String {
    let mut swapped = String::with_capacity(text.len());
    for (index, character) in text.char_indices() {
        match character {
            'Σ' => swapped.push(sigma(&text[..index], &text[index + 2..])),
            upper if upper.is_uppercase() => swapped.extend(upper.to_lowercase()),
            lower if lower.is_lowercase() => swapped.extend(lower.to_uppercase()),
            other => swapped.push(other),
        }
    }
    swapped
}
