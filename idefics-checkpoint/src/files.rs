//! What reading a file can give besides its content.

use std::io;

/// What the system answered, without the number that Rust puts behind it (`(os error 2)`).
pub(crate) fn io_words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" (os error ").map(|(words, _)| words.to_owned());
    words.unwrap_or(text)
}

/// A file of another kind that people find where weights or their index should be. Displayed, it says what it is and what
/// to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OtherFile {
    /// The few lines that `git clone` leaves in place of a large file where Git LFS is not installed.
    #[error("is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file again")]
    GitLfsPointer,
    /// A model of llama.cpp.
    #[error(
        "is a GGUF file under another name; give it a name that ends in .gguf and take it as the model, or take \
         model.safetensors of the original checkpoint"
    )]
    Gguf,
    /// What `torch.save` writes, or another zip archive.
    #[error(
        "is a zip archive, as PyTorch writes, not a safetensors file; if it is a pytorch_model.bin, give it that name and \
         allow pickles (--allow-pickle), else unpack it"
    )]
    Zip,
    /// What `torch.save` wrote before PyTorch 1.6, or another pickle.
    #[error(
        "is a Python pickle, not a safetensors file; convert it once with PyTorch: \
         safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")"
    )]
    Pickle,
    /// A page of a server instead of the file: most often its login page.
    #[error(
        "is a page of a server (HTML), not the file itself: it asked to log in, or has no such file; download it again \
         with a token that may read it"
    )]
    Html,
}

impl OtherFile {
    /// What a file is, by its first bytes, if they are known and cannot begin a safetensors file or JSON.
    pub(crate) fn of(content: &[u8]) -> Option<Self> {
        let head = &content[..content.len().min(256)];
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        match head {
            _ if begins(b"version https://git-lfs.github.com/spec/") => Some(Self::GitLfsPointer),
            _ if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") => Some(Self::Html),
            [b'G', b'G', b'U', b'F', ..] => Some(Self::Gguf),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Some(Self::Zip),
            // As a safetensors file, the header would be larger than any is.
            [0x80, 2..=5, _, rest @ ..] if rest.iter().take(5).any(|&byte| byte != 0) => Some(Self::Pickle),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_told_by_their_first_bytes() {
        for (content, expected) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid"[..], OtherFile::GitLfsPointer),
            (b"GGUF\x03\0\0\0\0\0", OtherFile::Gguf),
            (b"PK\x03\x04\0\0\0\0", OtherFile::Zip),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j", OtherFile::Pickle),
            (b"\n <!DOCTYPE html><title>Log in", OtherFile::Html),
            (b"\xef\xbb\xbf<html lang=\"en\">", OtherFile::Html),
        ] {
            assert_eq!(OtherFile::of(content), Some(expected), "{expected}");
        }
        // The lengths of these headers have such bytes.
        for header_len in [0x0280_u64, 0x03_0280, 0x3c3c, 0x4b50] {
            assert_eq!(OtherFile::of(&[&header_len.to_le_bytes()[..], b"{\"a\":"].concat()), None, "{header_len}");
        }
        for content in [&b""[..], b"\x80", b"{\"weight_map\": {}}", b"GG", b"[]"] {
            assert_eq!(OtherFile::of(content), None);
        }
    }
}
