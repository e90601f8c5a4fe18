//! Splits a template into tokens, with the white space rules of the reference (`trim_blocks`, `lstrip_blocks`).
//!
//! Source: `jinja2.lexer.Lexer`.

use std::sync::Arc;

use num_bigint::BigInt;

use crate::ast::Const;
use crate::budget::MAX_INT_BITS;
use crate::error::{Error, Result};
use crate::repr::ascii;
use crate::unicode::{is_identifier, is_name_char, is_space};

#[derive(Debug, Clone)]
pub(crate) enum Token {
    Data(Arc<str>),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(Arc<str>),
    Number(Const),
    Str(String),
    Operator(&'static str),
    End,
}

/// Returns the tokens of a template with their line numbers. The last token is [`Token::End`].
pub(crate) fn tokenize(source: &str) -> Result<Vec<(u32, Token)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, position: 0, line: 1, tokens: Vec::new(), line_starts: true };
    lexer.run()?;
    lexer.tokens.push((lexer.line, Token::End));
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    position: usize,
    line: u32,
    tokens: Vec<(u32, Token)>,
    /// Whether the text consumed last ended with a line break, so that the position is at the start of a line.
    line_starts: bool,
}

/// The operators, longer operators first: the lexer takes the first operator that matches.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.position..]
    }

    /// Moves forward by `bytes` bytes.
    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.position..self.position + bytes];
        self.line += passed.matches('\n').count() as u32;
        self.line_starts = passed.ends_with('\n');
        self.position += bytes;
    }

    fn run(&mut self) -> Result<()> {
        while !self.rest().is_empty() {
            let rest = self.rest();
            let Some(start) = find_tag(rest) else {
                self.data(rest);
                self.advance(rest.len());
                return Ok(());
            };
            let (tag, after) = (&rest[start..start + 2], &rest[start + 2..]);
            let sign = after.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let raw = if tag == "{%" { raw_begin(after) } else { None };
            self.text(&rest[..start], sign, tag != "{{");
            self.advance(start + 2 + raw.unwrap_or(sign.map_or(0, char::len_utf8)));
            match (tag, raw) {
                (_, Some(_)) => self.raw()?,
                ("{#", _) => self.comment()?,
                ("{%", _) => {
                    self.tokens.push((self.line, Token::BlockBegin));
                    self.expression(true)?;
                }
                _ => {
                    self.tokens.push((self.line, Token::VariableBegin));
                    self.expression(false)?;
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.tokens.push((self.line, Token::Data(text.into())));
        }
    }

    /// Emits the text before a tag. The sign of the tag (`-` or `+`) and `lstrip` determine how the end of the text is
    /// stripped.
    fn text(&mut self, text: &'a str, sign: Option<char>, lstrip: bool) {
        let mut kept = text;
        match sign {
            Some('-') => kept = text.trim_end_matches(is_space),
            Some(_) => {}
            None => {
                let start = text.rfind('\n').map_or(0, |found| found + 1);
                if lstrip && (start > 0 || self.line_starts) && text[start..].chars().all(is_space) {
                    kept = &text[..start];
                }
            }
        }
        self.data(kept);
    }

    fn comment(&mut self) -> Result<()> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(()); // the reference accepts an unclosed `{#` at the very end of the template
        }
        let Some(end) = rest.find("#}") else {
            return Err(Error::syntax("missing end of comment tag", self.line));
        };
        let sign = rest[..end].chars().next_back();
        self.advance(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// Skips white space after a block or comment. `sign` is the character before the closing delimiter of that block
    /// or comment.
    fn after_block(&mut self, sign: Option<char>) {
        let rest = self.rest();
        match sign {
            Some('-') => self.advance(rest.len() - rest.trim_start_matches(is_space).len()),
            Some('+') => {}
            _ if rest.starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(()); // the reference accepts `{% raw %}` without `{% endraw %}` at the very end
        }
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let start = from + found;
            from = start + 2;
            let after = &rest[from..];
            let sign = after.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let after = after.strip_prefix(['-', '+']).unwrap_or(after);
            let Some(after) = after.trim_start_matches(is_space).strip_prefix("endraw") else { continue };
            let after = after.trim_start_matches(is_space);
            let end_sign = after.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let Some(after) = after.strip_prefix(['-', '+']).unwrap_or(after).strip_prefix("%}") else { continue };
            self.text(&rest[..start], sign, true);
            self.advance(rest.len() - after.len());
            self.after_block(end_sign);
            return Ok(());
        }
        Err(Error::syntax("missing end of raw directive", self.line))
    }

    /// Emits the tokens inside a tag, up to and including its end.
    fn expression(&mut self, block: bool) -> Result<()> {
        let (end, end_token) = if block { ("%}", Token::BlockEnd) } else { ("}}", Token::VariableEnd) };
        let mut open: Vec<char> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return Ok(()) };
            if open.is_empty() {
                let signs: &[char] = if block { &['-', '+'] } else { &['-'] };
                let (sign, after) = match rest.strip_prefix(signs) {
                    Some(after) => (Some(first), after),
                    None => (None, rest),
                };
                if after.starts_with(end) {
                    self.tokens.push((self.line, end_token));
                    self.advance(rest.len() - after.len() + 2);
                    if block || sign == Some('-') {
                        self.after_block(sign);
                    }
                    return Ok(());
                }
            }
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
                continue;
            }
            let line = self.line;
            let (token, length) = self.token(rest, first)?;
            if let Token::Operator(operator) = token {
                match operator {
                    "(" => open.push(')'),
                    "[" => open.push(']'),
                    "{" => open.push('}'),
                    ")" | "]" | "}" => {
                        let expected = open.pop();
                        if expected.is_none_or(|expected| !operator.starts_with(expected)) {
                            let expected = expected.map(|text| format!(", expected '{text}'")).unwrap_or_default();
                            return Err(Error::syntax(format!("unexpected '{operator}'{expected}"), line));
                        }
                    }
                    _ => {}
                }
            }
            self.tokens.push((line, token));
            self.advance(length);
        }
    }

    fn token(&self, rest: &str, first: char) -> Result<(Token, usize)> {
        if first.is_ascii_digit()
            && let Some(number) = self.number(rest)?
        {
            return Ok(number);
        }
        if is_name_char(first) {
            let length = rest.find(|character| !is_name_char(character)).unwrap_or(rest.len());
            if !is_identifier(&rest[..length]) {
                return Err(Error::syntax("invalid character in identifier", self.line));
            }
            return Ok((Token::Name(rest[..length].into()), length));
        }
        if matches!(first, '\'' | '"')
            && let Some(end) = end_of_string(rest, first)
        {
            return Ok((Token::Str(unescape(&rest[1..end], self.line)?), end + 1));
        }
        match OPERATORS.iter().find(|operator| rest.starts_with(**operator)) {
            Some(operator) => Ok((Token::Operator(operator), operator.len())),
            None => Err(Error::syntax(format!("unexpected character {first:?}"), self.line)),
        }
    }

    fn number(&self, rest: &str) -> Result<Option<(Token, usize)>> {
        let after_dot = self.source[..self.position].ends_with('.');
        let digits = digits_end(rest);
        if !after_dot && let Some(mut end) = digits {
            let fraction = rest[end..].strip_prefix('.').and_then(digits_end).map(|length| end + 1 + length);
            end = fraction.unwrap_or(end);
            let exponent = rest[end..].strip_prefix(['e', 'E']).and_then(|text| {
                let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
                digits_end(unsigned).map(|length| end + 1 + text.len() - unsigned.len() + length)
            });
            end = exponent.unwrap_or(end);
            if fraction.is_some() || exponent.is_some() {
                let number = rest[..end].replace('_', "");
                let number = number.parse().map_err(|_| Error::syntax("invalid number", self.line))?;
                return Ok(Some((Token::Number(Const::Float(number)), end)));
            }
        }
        let (text, radix, skip) = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0b") => (&rest[2..], 2, 2),
            Some("0o") => (&rest[2..], 8, 2),
            Some("0x") => (&rest[2..], 16, 2),
            _ => (rest, 10, 0),
        };
        let prefixed = if skip > 0 { prefixed_end(text, radix) } else { None };
        let (text, radix, skip, length) = match prefixed {
            Some(length) => (text, radix, skip, length),
            None if rest.starts_with('0') => {
                let length = rest.find(|character| !matches!(character, '0' | '_')).unwrap_or(rest.len());
                (rest, 10, 0, rest[..length].trim_end_matches('_').len())
            }
            None => (rest, 10, 0, digits.unwrap_or(1)),
        };
        let digits = text[..length].replace('_', "");
        if digits.len() as u64 > MAX_INT_BITS / 8 {
            return Err(Error::syntax("an integer has more than 4096 digits", self.line));
        }
        let number = match i64::from_str_radix(&digits, radix) {
            Ok(number) => Const::Int(number),
            Err(_) => match BigInt::parse_bytes(digits.as_bytes(), radix) {
                Some(number) => Const::Big(Arc::new(number)),
                None => return Err(Error::syntax("invalid number", self.line)),
            },
        };
        Ok(Some((Token::Number(number), skip + length)))
    }
}

fn find_tag(text: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = text[from..].find('{') {
        let start = from + found;
        if matches!(text.as_bytes().get(start + 1), Some(b'{' | b'%' | b'#')) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}

/// If `after` (the text after `{%`) starts a raw block, returns the length of the rest of that tag in bytes.
fn raw_begin(after: &str) -> Option<usize> {
    let text = after.strip_prefix(['-', '+']).unwrap_or(after);
    let text = text.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let text = match text.strip_prefix("-%}") {
        Some(text) => text.trim_start_matches(is_space),
        None => text.strip_prefix("%}")?,
    };
    Some(after.len() - text.len())
}

/// Returns the length of the run of decimal digits at the start of `text`. A single `_` is allowed between digits.
fn digits_end(text: &str) -> Option<usize> {
    let mut end = 0;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' => end = index + 1,
            b'_' if end == index && end > 0 => {}
            _ => break,
        }
    }
    (end > 0).then_some(end)
}

/// Returns the length of the run of digits in base `radix` at the start of `text`. One `_` is allowed before each
/// digit.
fn prefixed_end(text: &str, radix: u32) -> Option<usize> {
    let mut end = 0;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'_' if end == index => {}
            byte if char::from(byte).is_digit(radix) => end = index + 1,
            _ => break,
        }
    }
    (end > 0).then_some(end)
}

fn end_of_string(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (index, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Some(index),
            _ => {}
        }
    }
    None
}

/// Decodes a string literal with Python's `unicode-escape` codec.
fn unescape(text: &str, line: u32) -> Result<String> {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\\' {
            result.push(character);
            continue;
        }
        let Some(escape) = characters.next() else {
            return Err(Error::syntax("\\ at end of string", line));
        };
        let mut code = |digits: usize, radix: u32, first: u32, exact: bool| {
            let mut value = first;
            for taken in 0..digits {
                match characters.peek().and_then(|character| character.to_digit(radix)) {
                    Some(digit) => value = value.saturating_mul(radix).saturating_add(digit),
                    None if exact => {
                        return Err(Error::syntax(format!("truncated \\{escape} escape after {taken} digits"), line));
                    }
                    None => break,
                }
                characters.next();
            }
            char::from_u32(value)
                .ok_or_else(|| Error::syntax(format!("\\{escape} escape {value:#x} is not a character"), line))
        };
        match escape {
            '\n' => {}
            'a' => result.push('\x07'),
            'b' => result.push('\x08'),
            'f' => result.push('\x0c'),
            'n' => result.push('\n'),
            'r' => result.push('\r'),
            't' => result.push('\t'),
            'v' => result.push('\x0b'),
            '\\' | '\'' | '"' => result.push(escape),
            'x' => result.push(code(2, 16, 0, true)?),
            'u' => result.push(code(4, 16, 0, true)?),
            'U' => result.push(code(8, 16, 0, true)?),
            '0'..='7' => result.push(code(2, 8, escape as u32 - '0' as u32, false)?),
            'N' => return Err(Error::syntax("\\N{…} escapes are not supported; use \\u and four digits", line)),
            _ if escape.is_ascii() => result.extend(['\\', escape]),
            // The reference turns non-ASCII characters into escapes before decoding. A preceding `\` then escapes
            // only the backslash of that escape.
            _ => result += &ascii(escape.encode_utf8(&mut [0; 4])),
        }
    }
    Ok(result)
}
