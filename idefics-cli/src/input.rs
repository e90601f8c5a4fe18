//! Reads text from files, pipes and standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use idefics_generate::processor::without_byte_order_mark;

use crate::failure::Failure;

/// The argument that means standard input or standard output.
pub(crate) const STANDARD: &str = "-";

/// Maximum size of a file that is read as one JSON value, in bytes.
const MAX_JSON: u64 = 1 << 30;

/// The source that samples are read from: a file or standard input.
#[derive(Debug)]
pub(crate) struct Input {
    /// `None` for standard input.
    path: Option<PathBuf>,
}

impl Input {
    /// Creates the input for the file at `path`, or for standard input if `path` is `-`.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: (path.as_os_str() != STANDARD).then(|| path.to_owned()) }
    }

    /// Returns the name of the input for messages.
    pub(crate) fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    /// Returns the folder that relative paths in the input are resolved against: the folder of the file. For standard
    /// input and pipes such as `/dev/fd/63`, it is the working folder (an empty path).
    pub(crate) fn folder(&self) -> &Path {
        let path = self.path.as_deref().filter(|path| !["/dev", "/proc"].iter().any(|system| path.starts_with(system)));
        path.and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// Returns whether the input is a regular file, so that reading it never waits for another program.
    pub(crate) fn is_file(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.is_file())
    }

    /// Returns whether the input is the same file as `path`, after resolving links.
    pub(crate) fn is_same_file(&self, path: &Path) -> bool {
        let Some(input) = &self.path else { return false };
        matches!((input.canonicalize(), path.canonicalize()), (Ok(input), Ok(path)) if input == path)
    }

    /// Opens the input for reading.
    pub(crate) fn open(&self) -> Result<Box<dyn BufRead + Send>, Failure> {
        match &self.path {
            None => Ok(Box::new(BufReader::new(io::stdin()))),
            Some(path) => Ok(Box::new(BufReader::new(File::open(path).map_err(|error| Failure::io(path, &error))?))),
        }
    }

    /// Creates the failure for an I/O error of this input.
    pub(crate) fn failed(&self, error: &io::Error) -> Failure {
        Failure::io_named(&self.name(), error)
    }

    /// Reads the whole input as one JSON value.
    pub(crate) fn json(&self) -> Result<serde_json::Value, Failure> {
        let mut text = Vec::new();
        self.open()?.take(MAX_JSON + 1).read_to_end(&mut text).map_err(|error| self.failed(&error))?;
        if text.len() as u64 > MAX_JSON {
            let message = format!("{}: more than {MAX_JSON} bytes; use `idefics batch` for many samples", self.name());
            return Err(Failure::limit(message));
        }
        let value = strip_byte_order_mark(&text)
            .and_then(|text| serde_json::from_slice(text).map_err(|error| error.to_string()));
        value.map_err(|reason| Failure::input(format!("{}: not valid JSON: {reason}", self.name())))
    }
}

/// Removes the byte order mark that some Windows programs put in front of UTF-8 text.
///
/// # Errors
/// If the text is UTF-16.
pub(crate) fn strip_byte_order_mark(text: &[u8]) -> Result<&[u8], String> {
    if text.starts_with(&[0xFF, 0xFE]) || text.starts_with(&[0xFE, 0xFF]) {
        return Err("the text is UTF-16; save it as UTF-8".to_owned());
    }
    Ok(without_byte_order_mark(text))
}

/// Reads a line with its line ending into `line`, and replaces the old contents. Returns the length of the whole line
/// in bytes, or 0 at the end of the text. If the line is longer than `max` bytes, only its first `max + 1` bytes are
/// kept.
pub(crate) fn read_line(reader: &mut impl BufRead, max: usize, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    let mut len = reader.by_ref().take(max as u64 + 1).read_until(b'\n', line)?;
    let mut is_whole = len <= max || line.ends_with(b"\n");
    while !is_whole {
        let rest = reader.fill_buf()?;
        let end = rest.iter().position(|&byte| byte == b'\n');
        let passed = end.map_or(rest.len(), |end| end + 1);
        is_whole = end.is_some() || passed == 0;
        reader.consume(passed);
        len += passed;
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_line_truncates_long_lines_and_returns_their_full_length() {
        for (text, max) in
            [("ab\nlong line\n\nc", 3), ("ab\nlong line\n\nc", 100), ("abcd\nx\n", 3), ("", 1), ("abcd", 3)]
        {
            let mut reader = BufReader::with_capacity(2, text.as_bytes());
            let (mut line, mut lens) = (Vec::new(), Vec::new());
            loop {
                let len = read_line(&mut reader, max, &mut line).unwrap();
                if len == 0 {
                    break;
                }
                lens.push(len);
                assert!(line.len() == len || line.len() == max + 1, "{text:?} {max}");
            }
            let expected: Vec<usize> = text.split_inclusive('\n').map(str::len).collect();
            assert_eq!(lens, expected, "{text:?} {max}");
        }
    }

    #[test]
    fn removes_byte_order_mark_and_rejects_utf16() {
        assert_eq!(strip_byte_order_mark(b"\xEF\xBB\xBF{}"), Ok(&b"{}"[..]));
        assert_eq!(strip_byte_order_mark(b""), Ok(&b""[..]));
        assert!(strip_byte_order_mark(b"\xFF\xFE{\0").is_err_and(|reason| reason.contains("UTF-8")));
    }
}
