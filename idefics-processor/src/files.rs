//! Helpers for reading files: readable error messages, Git LFS pointers, byte order marks.

use std::io;

/// Describes an I/O error for users, without the `(os error 2)` that Rust appends.
pub fn describe_io_error(error: &io::Error) -> String {
    let is_os_error = error.raw_os_error().is_some();
    match error.kind() {
        io::ErrorKind::NotFound if is_os_error => "there is no such file or folder".to_owned(),
        io::ErrorKind::PermissionDenied if is_os_error => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory if is_os_error => "it is a folder; expected a file".to_owned(),
        io::ErrorKind::NotADirectory if is_os_error => "a part of the path is a file, not a folder".to_owned(),
        io::ErrorKind::StorageFull if is_os_error => "no space is left on the device".to_owned(),
        _ => {
            let text = error.to_string();
            let words = text.rsplit_once(" (os error ").map(|(words, _)| words.to_owned());
            words.unwrap_or(text)
        }
    }
}

/// Returns whether `content` starts like a Git LFS pointer: the small text file that `git clone` writes instead of a
/// large file if Git LFS is not installed.
///
/// Source: the Git LFS specification (`docs/spec.md` of git-lfs): a pointer begins with its `version` key.
pub fn is_git_lfs_pointer(content: &[u8]) -> bool {
    content.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Strips the UTF-8 byte order mark that some editors write before JSON.
pub fn without_byte_order_mark(content: &[u8]) -> &[u8] {
    content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content)
}

/// Rewrites a JSON error in terms of JSON instead of Rust types: `expected usize` becomes `expected a whole number`.
pub fn describe_json_error(error: &impl std::fmt::Display) -> String {
    const WORDS: [(&str, &str); 19] = [
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number below 2^32"),
        ("expected u16", "expected a whole number below 65536"),
        ("expected u8", "expected a whole number below 256"),
        ("expected i64", "expected a whole number"),
        ("expected i32", "expected a whole number"),
        ("expected a nonzero usize", "expected a whole number of at least 1"),
        ("expected a nonzero u32", "expected a whole number of at least 1"),
        ("expected f32", "expected a number"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected an object"),
        ("invalid type: sequence", "found a list"),
        ("invalid type: map", "found an object"),
        ("invalid type: ", "found "),
        (", expected ", "; expected "),
        ("unknown variant", "unknown value"),
    ];
    let mut text = error.to_string();
    for (theirs, ours) in WORDS {
        text = text.replace(theirs, ours);
    }
    // The content is not JSON at all: an empty file, or an HTML page from a server.
    if ["EOF while parsing a value at line 1 column 0", "expected value at line 1 column 1"].contains(&text.as_str()) {
        text = "it is not JSON; download it again".to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_errors_name_no_rust_types() {
        let number = serde_json::from_str::<usize>("\"4\"").unwrap_err();
        assert_eq!(describe_json_error(&number), "found string \"4\"; expected a whole number at line 1 column 3");
        let list = serde_json::from_str::<std::collections::HashMap<String, u32>>("[]").unwrap_err();
        assert!(
            describe_json_error(&list).starts_with("found a list; expected an object"),
            "{}",
            describe_json_error(&list)
        );
        for text in ["", "<html>"] {
            let error = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
            assert_eq!(describe_json_error(&error), "it is not JSON; download it again");
        }
    }

    #[test]
    fn io_errors_have_no_os_error_number() {
        for code in 1..133 {
            let error = io::Error::from_raw_os_error(code);
            assert!(error.to_string().contains("os error"), "{error}");
            let words = describe_io_error(&error);
            assert!(!words.contains("os error") && words.len() > 4, "{words}");
        }
        assert_eq!(describe_io_error(&io::Error::from_raw_os_error(2)), "there is no such file or folder");
        let custom = io::Error::new(io::ErrorKind::NotFound, "no shard of that name");
        assert_eq!(describe_io_error(&custom), "no shard of that name");
    }
}
