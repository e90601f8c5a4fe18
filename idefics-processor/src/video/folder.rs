//! Folders of frames.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use crate::video::VideoError;

/// Maximum number of entries of a folder.
const MAX_ENTRIES: usize = 1 << 20;

/// File name extensions of pictures, in lower case. Other files of the folder are ignored.
const ENDINGS: [&str; 18] = [
    "png", "apng", "jpg", "jpeg", "jpe", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif",
    "jp2", "j2k", "tga",
];

/// Returns the pictures of a folder, sorted by name. Numbers in names are compared by value. Files whose names begin
/// with a dot are ignored.
///
/// # Errors
/// [`VideoError::Read`], [`VideoError::FolderTooLarge`].
pub(super) fn frames(folder: &Path) -> Result<Vec<PathBuf>, VideoError> {
    let read_error = |error| VideoError::Read { path: folder.to_owned(), error };
    let mut frames = Vec::new();
    for (count, entry) in std::fs::read_dir(folder).map_err(read_error)?.enumerate() {
        let path = entry.map_err(read_error)?.path();
        if count == MAX_ENTRIES {
            let video = folder.display().to_string();
            return Err(VideoError::FolderTooLarge { video, limit: MAX_ENTRIES });
        }
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if !is_hidden && ENDINGS.contains(&ending.as_str()) {
            frames.push(path);
        }
    }
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
    frames.sort_by_cached_key(|path| Natural(name(path)));
    Ok(frames)
}

/// A name whose runs of digits are compared as numbers: `frame2` is before `frame10`.
#[derive(Debug, PartialEq, Eq)]
struct Natural(Vec<u8>);

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut left, mut right) = (self.0.as_slice(), other.0.as_slice());
        loop {
            let (a, b) = match (left.first(), right.first()) {
                (Some(a), Some(b)) => (a, b),
                // Names that differ only in leading zeros are compared byte by byte.
                (None, None) => return self.0.cmp(&other.0),
                (a, b) => return a.cmp(&b),
            };
            let order = match a.is_ascii_digit() && b.is_ascii_digit() {
                true => {
                    let (a, b) = (number(&mut left), number(&mut right));
                    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
                }
                false => {
                    (left, right) = (&left[1..], &right[1..]);
                    a.cmp(b)
                }
            };
            if order != Ordering::Equal {
                return order;
            }
        }
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Removes the digits at the start of `name` and returns them without leading zeros.
fn number<'n>(name: &mut &'n [u8]) -> &'n [u8] {
    let end = name.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(name.len());
    let (digits, rest) = name.split_at(end);
    *name = rest;
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_compared_by_value() {
        let mut names = ["b1", "a10", "a2", "a02", "a1b3", "a1b20", "a", "a1", "12", "9", "a99999999999999999999999"];
        names.sort_by_key(|name| Natural(name.as_bytes().to_vec()));
        assert_eq!(
            names,
            ["9", "12", "a", "a1", "a1b3", "a1b20", "a02", "a2", "a10", "a99999999999999999999999", "b1"]
        );
    }

    #[test]
    fn only_pictures_are_frames() {
        let folder = tempfile::tempdir().expect("a temporary folder can be created");
        for name in ["10.PNG", "9.jpg", "notes.txt", ".hidden.png", "8"] {
            std::fs::write(folder.path().join(name), "").expect("the file can be written");
        }
        let names: Vec<String> = frames(folder.path())
            .expect("the folder can be read")
            .iter()
            .map(|path| path.file_name().expect("the path has a file name").to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["9.jpg", "10.PNG"]);
    }
}
