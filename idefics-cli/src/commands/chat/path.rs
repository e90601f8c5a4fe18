//! Parses paths that users type or paste.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Parses a path argument. Surrounding quotes are removed and `~` at the start is expanded to the home folder.
/// Backslash escapes, as in paths pasted by terminals, are resolved unless a file with the literal name exists.
pub(super) fn parse(typed: &[u8]) -> OsString {
    if let Some(inner) = [b'\'', b'"'].iter().find_map(|quote| quoted(typed, *quote)) {
        return os_string(inner.to_vec());
    }
    let home = match typed {
        b"~" => std::env::home_dir().map(PathBuf::into_os_string),
        [b'~', b'/', rest @ ..] => {
            std::env::home_dir().map(|home| home.join(os_string(rest.to_vec())).into_os_string())
        }
        _ => None,
    };
    let name = home.unwrap_or_else(|| os_string(typed.to_vec()));
    if cfg!(unix) && typed.contains(&b'\\') && !Path::new(&name).exists() {
        return os_string(without_backslashes(name.as_encoded_bytes()));
    }
    name
}

fn quoted(typed: &[u8], quote: u8) -> Option<&[u8]> {
    typed.strip_prefix(&[quote])?.strip_suffix(&[quote])
}

/// Resolves backslash escapes: `a\ b\\c` becomes `a b\c`.
fn without_backslashes(name: &[u8]) -> Vec<u8> {
    let mut bytes = name.iter();
    std::iter::from_fn(|| match bytes.next()? {
        b'\\' => bytes.next().or(Some(&b'\\')),
        byte => Some(byte),
    })
    .copied()
    .collect()
}

/// Converts bytes to a file name. On Unix it need not be UTF-8; elsewhere, invalid UTF-8 is replaced.
fn os_string(bytes: Vec<u8>) -> OsString {
    #[cfg(unix)]
    return std::os::unix::ffi::OsStringExt::from_vec(bytes);
    #[cfg(not(unix))]
    return String::from_utf8_lossy(&bytes).into_owned().into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_quotes_home_folder_and_escapes_like_a_shell() {
        let home = std::env::home_dir().unwrap();
        for (typed, expected) in [
            ("a b.png", PathBuf::from("a b.png")),
            ("'a b.png'", "a b.png".into()),
            ("\"a'b.png\"", "a'b.png".into()),
            ("a\\ b\\(1\\).png", "a b(1).png".into()),
            ("~", home.clone()),
            ("~/a\\ b.png", home.join("a b.png")),
            ("~someone/a.png", "~someone/a.png".into()),
            ("'~/a.png'", "~/a.png".into()),
            ("'", "'".into()),
            ("data:image/png;base64,AA==", "data:image/png;base64,AA==".into()),
        ] {
            assert_eq!(Path::new(&parse(typed.as_bytes())), expected, "{typed}");
        }
        assert_eq!(parse(b"caf\xE9.png").as_encoded_bytes(), b"caf\xE9.png");
    }
}
