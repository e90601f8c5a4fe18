//! What reading a file can give besides its content.

use std::io;

/// What the system answered, in words: without the number that Rust puts behind it (`(os error 2)`).
pub fn io_words(error: &io::Error) -> String {
    let is_of_system = error.raw_os_error().is_some();
    match error.kind() {
        io::ErrorKind::NotFound if is_of_system => "there is no such file or folder".to_owned(),
        io::ErrorKind::PermissionDenied if is_of_system => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory if is_of_system => "it is a folder; a file was expected".to_owned(),
        io::ErrorKind::NotADirectory if is_of_system => "a part of the path is a file, not a folder".to_owned(),
        io::ErrorKind::StorageFull if is_of_system => "no space is left on the device".to_owned(),
        _ => {
            let text = error.to_string();
            let words = text.rsplit_once(" (os error ").map(|(words, _)| words.to_owned());
            words.unwrap_or(text)
        }
    }
}

/// Whether these are the first bytes of a Git LFS pointer: the few lines that `git clone` leaves in place of a large file
/// where Git LFS is not installed.
///
/// Source: the Git LFS specification (`docs/spec.md` of git-lfs): a pointer begins with its `version` key.
pub fn is_git_lfs_pointer(content: &[u8]) -> bool {
    content.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// JSON text without the byte order mark that some editors put in front.
pub fn without_byte_order_mark(content: &[u8]) -> &[u8] {
    content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_system_have_no_number() {
        for code in 1..133 {
            let error = io::Error::from_raw_os_error(code);
            assert!(error.to_string().contains("os error"), "{error}");
            let words = io_words(&error);
            assert!(!words.contains("os error") && words.len() > 4, "{words}");
        }
        assert_eq!(io_words(&io::Error::from_raw_os_error(2)), "there is no such file or folder");
        let of_ours = io::Error::new(io::ErrorKind::NotFound, "no shard of that name");
        assert_eq!(io_words(&of_ours), "no shard of that name");
    }
}
