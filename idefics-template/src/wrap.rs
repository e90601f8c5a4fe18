//! Line splitting and text wrapping.
//!
//! Source: Python's `textwrap`.

use crate::unicode::{is_alpha, is_line_break, is_space, is_word};

/// Splits a text into lines, as Python's `splitlines` does.
pub(crate) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((end, line_break)) = rest.char_indices().find(|(_, character)| is_line_break(*character)) {
        let length = if rest[end..].starts_with("\r\n") { 2 } else { line_break.len_utf8() };
        lines.push(&rest[..if keep_ends { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Wraps text to lines of at most `width` characters. Breaks words longer than a line only if `break_long_words` is
/// set.
pub(crate) fn wrap(text: &str, width: usize, break_long_words: bool, break_on_hyphens: bool) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let mut chunks = chunks(&characters, break_on_hyphens).into_iter().peekable();
    let mut lines: Vec<String> = Vec::new();
    // The first chunk of the next line: a chunk that did not fit on the current line, or the rest of a broken word.
    let mut pending: Option<&[char]> = None;
    let is_blank = |chunk: &[char]| chunk.iter().all(|character| is_space(*character));
    loop {
        let mut line: Vec<&[char]> = Vec::new();
        let mut length = 0;
        let mut next = pending.take().or_else(|| chunks.next());
        if !lines.is_empty() && next.is_some_and(is_blank) {
            next = chunks.next();
        }
        let Some(mut chunk) = next else { return lines };
        loop {
            if length + chunk.len() > width {
                pending = Some(chunk);
                break;
            }
            length += chunk.len();
            line.push(chunk);
            match chunks.next() {
                Some(next) => chunk = next,
                None => break,
            }
        }
        if let Some(word) = pending
            && word.len() > width
        {
            if break_long_words {
                let left = width - length;
                let mut end = left;
                if break_on_hyphens && word.len() > left {
                    let hyphen = word[..left].iter().rposition(|character| *character == '-');
                    if let Some(hyphen) =
                        hyphen.filter(|hyphen| word[..*hyphen].iter().any(|character| *character != '-'))
                    {
                        end = hyphen + 1;
                    }
                }
                line.push(&word[..end]);
                pending = Some(&word[end..]).filter(|rest| !rest.is_empty());
            } else if line.is_empty() {
                line.push(word);
                pending = None;
            }
        }
        if line.last().is_some_and(|last| is_blank(last)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.into_iter().flatten().collect());
        }
    }
}

/// Whether `textwrap` treats the character as white space. White space outside ASCII does not count.
fn is_blank(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// Splits text into words, parts of words, and white space. A line can end after each chunk.
fn chunks(text: &[char], break_on_hyphens: bool) -> Vec<&[char]> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let end = chunk_end(text, start, break_on_hyphens);
        chunks.push(&text[start..end]);
        start = end;
    }
    chunks
}

fn chunk_end(text: &[char], start: usize, break_on_hyphens: bool) -> usize {
    let run = |from: usize, test: fn(char) -> bool| {
        text[from..].iter().position(|character| !test(*character)).map_or(text.len(), |length| from + length)
    };
    if is_blank(text[start]) {
        return run(start, is_blank);
    }
    if !break_on_hyphens {
        return run(start, |character| !is_blank(character));
    }
    let is = |index: Option<usize>, test: fn(char) -> bool| {
        index.and_then(|index| text.get(index)).is_some_and(|character| test(*character))
    };
    let is_letter = |index: Option<usize>| is(index, is_alpha);
    let is_hyphen = |index: Option<usize>| is(index, |character| character == '-');
    let punctuates: fn(char) -> bool = |character| is_word(character) || "!\"'&.,?".contains(character);
    // Returns the end of the dash that starts at `at`. A dash is two or more hyphens between words.
    let dash_end = |at: usize| {
        let end = run(at, |character| character == '-');
        (end >= at + 2 && is(at.checked_sub(1), punctuates) && is(Some(end), is_word)).then_some(end)
    };
    if let Some(end) = dash_end(start) {
        return end;
    }
    for (at, &character) in text.iter().enumerate().skip(start + 1) {
        let back = |distance: usize| at.checked_sub(distance);
        let hyphenated = character == '-'
            && is_letter(back(1))
            && (is_letter(back(2)) || (is_hyphen(back(2)) && is_letter(back(3))))
            && is_letter(Some(at + 1))
            && (is_letter(Some(at + 2)) || (is_hyphen(Some(at + 2)) && is_letter(Some(at + 3))));
        if hyphenated {
            return at + 1;
        }
        if is_blank(character) || dash_end(at).is_some() {
            return at;
        }
    }
    text.len()
}
