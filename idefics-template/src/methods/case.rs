//! Upper and lower case as Python has it.

use crate::unicode::to_title;

pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // The last sigma depends on what is before it.
    let lower = text.to_lowercase();
    to_title(first).chain(lower.chars().skip(first.to_lowercase().count())).collect()
}

pub(super) fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for (index, character) in text.char_indices() {
        match in_word {
            // The end of a word decides about the last sigma.
            true if character == 'Σ' => titled.push(sigma(&text[..index], &text[index + 2..])),
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(to_title(character)),
        }
        in_word = is_cased(character);
    }
    titled
}

/// The small sigma between two texts.
fn sigma(before: &str, after: &str) -> char {
    let ends = before.chars().next_back().is_some_and(is_cased) && !after.chars().next().is_some_and(is_cased);
    if ends { 'ς' } else { 'σ' }
}

pub(super) fn is_cased(character: char) -> bool {
    character.is_uppercase() || character.is_lowercase() || is_title(character)
}

/// Letters that are two in one, the first of them large.
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
