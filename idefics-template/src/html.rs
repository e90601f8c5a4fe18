//! HTML escaping.
//!
//! Source: `markupsafe`.

use crate::budget::Budget;
use crate::error::Result;

/// Escapes the characters `& < > ' "`.
pub(crate) fn escape(text: &str, budget: &mut Budget) -> Result<String> {
    budget.build(text.len())?;
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\'' => escaped += "&#39;",
            '"' => escaped += "&#34;",
            _ => escaped.push(character),
        }
    }
    budget.build(escaped.len())?;
    Ok(escaped)
}

/// Removes comments and tags, collapses white space, and decodes entities.
pub(crate) fn strip_tags(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (skip, close) = if rest[start..].starts_with("<!--") { (4, "-->") } else { (1, ">") };
        // A tag without an end is kept, with the text after it.
        let Some(length) = rest[start + skip..].find(close) else { break };
        kept += &rest[..start];
        rest = &rest[start + skip + length + close.len()..];
    }
    kept += rest;
    let words: Vec<&str> = kept.split(crate::unicode::is_space).filter(|word| !word.is_empty()).collect();
    unescape(&words.join(" "))
}

/// The characters of the numeric entities 128 to 159, as in windows-1252.
const WINDOWS: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";

/// Supported named entities: the entities of XML, and the most common entities of HTML.
const ENTITIES: [(&str, &str); 40] = [
    ("amp", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("apos", "'"),
    ("nbsp", "\u{a0}"),
    ("copy", "©"),
    ("reg", "®"),
    ("trade", "™"),
    ("hellip", "…"),
    ("mdash", "—"),
    ("ndash", "–"),
    ("lsquo", "‘"),
    ("rsquo", "’"),
    ("ldquo", "“"),
    ("rdquo", "”"),
    ("laquo", "«"),
    ("raquo", "»"),
    ("bull", "•"),
    ("middot", "·"),
    ("times", "×"),
    ("divide", "÷"),
    ("deg", "°"),
    ("plusmn", "±"),
    ("euro", "€"),
    ("pound", "£"),
    ("yen", "¥"),
    ("cent", "¢"),
    ("sect", "§"),
    ("para", "¶"),
    ("larr", "←"),
    ("rarr", "→"),
    ("uarr", "↑"),
    ("darr", "↓"),
    ("auml", "ä"),
    ("ouml", "ö"),
    ("uuml", "ü"),
    ("szlig", "ß"),
    ("eacute", "é"),
    ("egrave", "è"),
];

/// Decodes entities as Python's `html.unescape` does, but only the named entities above.
pub(crate) fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        plain += &rest[..start];
        let after = &rest[start + 1..];
        match entity(after) {
            Some((decoded, length)) => {
                plain += &decoded;
                rest = &after[length..];
            }
            None => {
                plain.push('&');
                rest = after;
            }
        }
    }
    plain + rest
}

/// Decodes an entity. `text` starts after the entity's `&`. Returns the characters, and the length of the entity in
/// bytes.
fn entity(text: &str) -> Option<(String, usize)> {
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix, skip) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16, 2),
            None => (number, 10, 1),
        };
        let length = digits.find(|character: char| !character.is_digit(radix)).unwrap_or(digits.len());
        if length == 0 {
            return None;
        }
        let code = u32::from_str_radix(&digits[..length], radix).unwrap_or(u32::MAX);
        let decoded = match code {
            0x80..=0x9f => WINDOWS.chars().nth(code as usize - 0x80).unwrap_or_default().to_string(),
            0x0d => "\r".to_owned(),
            // Control characters and noncharacters are dropped.
            0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
            code if code & 0xfffe == 0xfffe && code <= 0x10_ffff => String::new(),
            code => char::from_u32(code).filter(|_| code != 0).unwrap_or(char::REPLACEMENT_CHARACTER).to_string(),
        };
        let end = skip + length;
        return Some((decoded, end + usize::from(text[end..].starts_with(';'))));
    }
    let length = text.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(text.len());
    if text[length..].starts_with(';')
        && let Some((_, decoded)) = ENTITIES.iter().find(|(name, _)| *name == &text[..length])
    {
        return Some(((*decoded).to_owned(), length + 1));
    }
    // The legacy entities do not need a semicolon.
    let is_old = |name: &str| matches!(name, "amp" | "lt" | "gt" | "quot" | "nbsp" | "copy" | "reg");
    let (name, decoded) = ENTITIES.iter().find(|(name, _)| is_old(name) && text.starts_with(name))?;
    Some(((*decoded).to_owned(), name.len()))
}
