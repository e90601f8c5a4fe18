//! Text from files, pipes and standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use idefics_generate::processor::without_byte_order_mark;

use crate::failure::Failure;

/// The name of standard input and standard output on the command line.
pub(crate) const STANDARD: &str = "-";

/// Files of this many bytes at most are read as one JSON value.
const MAX_JSON: u64 = 1 << 30;

/// Where samples come from.
#[derive(Debug)]
pub(crate) struct Input {
    /// `None` for standard input.
    path: Option<PathBuf>,
}

impl Input {
    /// The file at `path`, or standard input for `-`.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: (path.as_os_str() != STANDARD).then(|| path.to_owned()) }
    }

    /// How messages name it.
    pub(crate) fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }

    /// The folder that relative paths in it start from: that of the file, or the working folder if it comes from standard
    /// input or from a pipe that the shell made.
    pub(crate) fn folder(&self) -> &Path {
        let path = self.path.as_deref().filter(|path| !["/dev", "/proc"].iter().any(|system| path.starts_with(system)));
        path.and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// Whether it is a regular file: all of it is there at once.
    pub(crate) fn is_file(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.is_file())
    }

    /// Whether it is the file at `path`, by whatever name.
    pub(crate) fn is_same_file(&self, path: &Path) -> bool {
        let Some(input) = &self.path else { return false };
        matches!((input.canonicalize(), path.canonicalize()), (Ok(input), Ok(path)) if input == path)
    }

    /// Opens it for reading.
    pub(crate) fn open(&self) -> Result<Box<dyn BufRead + Send>, Failure> {
        match &self.path {
            None => Ok(Box::new(BufReader::new(io::stdin()))),
            Some(path) => Ok(Box::new(BufReader::new(File::open(path).map_err(|error| Failure::io(path, &error))?))),
        }
    }

    /// What the system answered.
    pub(crate) fn failed(&self, error: &io::Error) -> Failure {
        Failure::of_io(&self.name(), error)
    }

    /// Reads all of it as one JSON value.
    pub(crate) fn json(&self) -> Result<serde_json::Value, Failure> {
        let mut text = Vec::new();
        self.open()?.take(MAX_JSON + 1).read_to_end(&mut text).map_err(|error| self.failed(&error))?;
        if text.len() as u64 > MAX_JSON {
            let message = format!("{}: more than {MAX_JSON} bytes; give many samples to `idefics batch`", self.name());
            return Err(Failure::limit(message));
        }
        let value =
            without_mark(&text).and_then(|text| serde_json::from_slice(text).map_err(|error| error.to_string()));
        value.map_err(|reason| Failure::input(format!("{}: not valid JSON: {reason}", self.name())))
    }
}

/// The text without the byte order mark that programs on Windows begin UTF-8 with.
pub(crate) fn without_mark(text: &[u8]) -> Result<&[u8], String> {
    if text.starts_with(&[0xFF, 0xFE]) || text.starts_with(&[0xFE, 0xFF]) {
        return Err("the text is UTF-16; save it as UTF-8".to_owned());
    }
    Ok(without_byte_order_mark(text))
}

/// Reads a line with its end into `line`, which is emptied first, and gives its length: 0 at the end of the text. Of a line
/// longer than `max` bytes only that many and one more are kept.
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
    fn long_lines_are_cut_and_counted() {
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
    fn marks_are_skipped_and_other_encodings_named() {
        assert_eq!(without_mark(b"\xEF\xBB\xBF{}"), Ok(&b"{}"[..]));
        assert_eq!(without_mark(b""), Ok(&b""[..]));
        assert!(without_mark(b"\xFF\xFE{\0").is_err_and(|reason| reason.contains("UTF-8")));
    }
}
