//! What reading a file can give besides its content.

use std::io;

/// What the system answered, without the number that Rust puts behind it (`(os error 2)`).
pub(crate) fn io_words(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" (os error ").map(|(words, _)| words.to_owned());
    words.unwrap_or(text)
}

/// Whether these are the first bytes of a Git LFS pointer: the few lines that `git clone` leaves in place of a large file
/// where Git LFS is not installed.
pub(crate) fn is_git_lfs_pointer(content: &[u8]) -> bool {
    content.starts_with(b"version https://git-lfs.github.com/spec/")
}
