//! Formats system error messages, and recognises files of an unexpected kind.

use std::io;

/// Returns the system's error message without the suffix that Rust appends, such as ` (os error 2)`.
pub(crate) fn describe_io_error(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" (os error ").map(|(words, _)| words.to_owned());
    words.unwrap_or(text)
}

/// The kind of a file that was found in place of weights or of their index. The `Display` text says what the file is
/// and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnexpectedFile {
    /// The short text file that `git clone` leaves in place of a large file if Git LFS is not installed.
    #[error("is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file again")]
    GitLfsPointer,
    /// A GGUF model, as used by llama.cpp.
    #[error(
        "is a GGUF file under another name; rename it so that it ends in .gguf and use it as the model, or use \
         model.safetensors of the original checkpoint"
    )]
    Gguf,
    /// A zip archive. Files of `torch.save` are also zip archives.
    #[error(
        "is a zip archive (PyTorch's format), not a safetensors file; if it is a pytorch_model.bin, give it that \
         name and allow pickles (--allow-pickle), otherwise unpack it"
    )]
    Zip,
    /// A bare pickle, the format of `torch.save` before PyTorch 1.6.
    #[error(
        "is a Python pickle, not a safetensors file; convert it once with PyTorch: \
         safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")"
    )]
    Pickle,
    /// An HTML page sent by a server instead of the file, most often a login page.
    #[error(
        "is an HTML page, not the file itself: the server asked for a login or has no such file; download it again \
         with a token that has access"
    )]
    Html,
}

impl UnexpectedFile {
    /// Recognises a file by its first bytes. Returns `None` if they are unknown, or could be the start of a safetensors
    /// file or of JSON.
    pub(crate) fn detect(content: &[u8]) -> Option<Self> {
        let head = &content[..content.len().min(256)];
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        match head {
            _ if begins(b"version https://git-lfs.github.com/spec/") => Some(Self::GitLfsPointer),
            _ if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") => Some(Self::Html),
            [b'G', b'G', b'U', b'F', ..] => Some(Self::Gguf),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Some(Self::Zip),
            // A safetensors file starts with the header length as a u64. If one of bytes 3 to 7 is not 0, this length
            // is above the limit, so the file is not a safetensors file.
            [0x80, 2..=5, _, rest @ ..] if rest.iter().take(5).any(|&byte| byte != 0) => Some(Self::Pickle),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_other_files_by_their_first_bytes() {
        for (content, expected) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid"[..], UnexpectedFile::GitLfsPointer),
            (b"GGUF\x03\0\0\0\0\0", UnexpectedFile::Gguf),
            (b"PK\x03\x04\0\0\0\0", UnexpectedFile::Zip),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j", UnexpectedFile::Pickle),
            (b"\n <!DOCTYPE html><title>Log in", UnexpectedFile::Html),
            (b"\xef\xbb\xbf<html lang=\"en\">", UnexpectedFile::Html),
        ] {
            assert_eq!(UnexpectedFile::detect(content), Some(expected), "{expected}");
        }
        // Safetensors header lengths whose first bytes look like another kind of file.
        for header_len in [0x0280_u64, 0x03_0280, 0x3c3c, 0x4b50] {
            assert_eq!(
                UnexpectedFile::detect(&[&header_len.to_le_bytes()[..], b"{\"a\":"].concat()),
                None,
                "{header_len}"
            );
        }
        for content in [&b""[..], b"\x80", b"{\"weight_map\": {}}", b"GG", b"[]"] {
            assert_eq!(UnexpectedFile::detect(content), None);
        }
    }
}
