//! String predicates, such as `isalpha`.

use crate::args::Args;
use crate::error::Result;
use crate::methods::case::{is_cased, is_title};
use crate::unicode::{is_alpha, is_decimal, is_digit, is_identifier, is_numeric, is_printable, is_space};
use crate::value::Text;

/// Calls a string predicate. Returns `None` if `name` is not a predicate.
pub(super) fn call(text: &Text, name: &str, args: &Args) -> Result<Option<bool>> {
    if !name.starts_with("is") {
        return Ok(None);
    }
    args.clone().none(name)?;
    let text = &*text.text;
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    Ok(Some(match name {
        "isalnum" => all(|character| is_alpha(character) || is_numeric(character)),
        "isalpha" => all(is_alpha),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isidentifier" => is_identifier(text),
        "islower" => is_lower(text),
        "isnumeric" => all(is_numeric),
        "isprintable" => text.chars().all(is_printable),
        "isspace" => all(is_space),
        "istitle" => is_titled(text),
        "isupper" => is_upper(text),
        _ => return Ok(None),
    }))
}

pub(crate) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase)
        && !text.chars().any(|character| character.is_uppercase() || is_title(character))
}

pub(crate) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase)
        && !text.chars().any(|character| character.is_lowercase() || is_title(character))
}

fn is_titled(text: &str) -> bool {
    let (mut after_cased, mut any) = (false, false);
    for character in text.chars() {
        let upper = character.is_uppercase() || is_title(character);
        if (upper && after_cased) || (character.is_lowercase() && !after_cased) {
            return false;
        }
        after_cased = is_cased(character);
        any |= after_cased;
    }
    any
}
