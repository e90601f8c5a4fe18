//! The lines of a journal. Each begins with the checksum of its text, eight hexadecimal digits and a space.

/// Length of the checksum and the space after it, in bytes.
const CHECKSUM: usize = 9;

/// Place of a row's line in the journal, without checksum and line ending. Offset and length are in bytes.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: usize,
    /// Digest of the row's input.
    pub(super) input: String,
    pub(super) is_error: bool,
}

impl Place {
    /// Returns the place of the text in a line of `len` bytes at `offset`. `len` includes checksum and line ending.
    pub(super) fn from_line(offset: u64, len: usize) -> Self {
        Self { offset: offset + CHECKSUM as u64, len: len - CHECKSUM - 1, input: String::new(), is_error: false }
    }
}

/// Returns the line for a text, with checksum and line ending.
pub(super) fn with_checksum(text: &str) -> String {
    format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()))
}

/// Returns the text of a complete line, if its checksum matches.
pub(super) fn text_of(line: &[u8]) -> Option<&str> {
    let line = str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (checksum, text) = line.split_once(' ')?;
    (checksum.len() == 8 && u32::from_str_radix(checksum, 16).ok()? == crc32fast::hash(text.as_bytes())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_text_and_detect_changes() {
        for text in ["", "run abc", "digest {\"text\": \"ä b\"}"] {
            let line = with_checksum(text);
            assert_eq!(text_of(line.as_bytes()), Some(text));
            let place = Place::from_line(7, line.len());
            assert_eq!(&line[place.offset as usize - 7..][..place.len], text);
            assert_eq!(text_of(&line.as_bytes()[..line.len() - 1]), None);
        }
        let mut line = with_checksum("digest row").into_bytes();
        for at in 0..line.len() {
            line[at] ^= 1;
            assert_eq!(text_of(&line), None, "byte {at}");
            line[at] ^= 1;
        }
    }
}
