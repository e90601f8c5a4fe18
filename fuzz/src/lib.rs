//! Code shared by the fuzz targets.

pub mod containers;

use std::fs;
use std::path::Path;

use idefics_image::{Alpha, Crop, Filter, Format, ImageError, Limits, ResizeTarget, decode, decode_resized, resize_view};

/// Returns the decoding limits of all targets: 64 MiB per picture. The fuzzer has a higher memory limit of its own. A
/// decoder exceeds that limit only if it uses much more memory than it counts against these limits.
pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_decoded_bytes = 64 << 20;
    limits
}

/// Decodes a file completely, and then again with resizing during decoding. Files of other formats are ignored, because
/// they belong to other targets.
///
/// # Panics
/// If the decoder panicked, the pixel data has the wrong size, or resizing during decoding gives another picture than
/// resizing afterwards.
pub fn picture(format: Format, data: &[u8]) {
    if Format::sniff(data) != Ok(format) {
        return;
    }
    for alpha in [Alpha::White, Alpha::Drop] {
        let whole = match decode(data, "fuzz", &limits(), alpha) {
            Ok(image) => {
                assert_eq!(image.data().len() as u64, 3 * u64::from(image.width()) * u64::from(image.height()));
                Some(image)
            }
            Err(ImageError::DecoderPanic { .. }) => panic!("the decoder panicked"),
            Err(_) => None,
        };
        let mut crop = Crop::whole(1, 1);
        let plan = |width: u32, height: u32| {
            crop = Crop { left: width / 3, top: height / 3, right: width, bottom: height };
            vec![ResizeTarget { crop, width: 33, height: 17, filter: Filter::Bicubic }]
        };
        match (decode_resized(data, "fuzz", &limits(), alpha, plan), whole) {
            (Ok(small), Some(whole)) => {
                let view = whole.view().crop(
                    crop.left as usize,
                    crop.top as usize,
                    crop.right as usize,
                    crop.bottom as usize,
                );
                assert!(small == [resize_view(view, 33, 17, Filter::Bicubic)], "{crop:?}");
            }
            (Err(ImageError::DecoderPanic { .. }), _) => panic!("the decoder panicked"),
            (Err(error), Some(_)) => panic!("decoding with resizing failed: {error}"),
            // The whole picture may be too large to decode, even if resizing it row by row is possible.
            (_, None) => {}
        }
    }
}

/// A temporary folder with the files of one run.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Creates an empty folder.
    ///
    /// # Panics
    /// If the folder cannot be created. The other functions panic too if the file system fails, because such an error
    /// is not caused by the code under test.
    #[expect(clippy::new_without_default, reason = "it creates a folder")]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be created"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, contents: &[u8]) {
        fs::write(self.path().join(name), contents).expect("the file can be written");
    }

    /// Writes the parts of `data` between NUL bytes to `names`. Files without a part are left out.
    pub fn write_parts(&self, data: &[u8], names: &[&str]) {
        for (name, part) in names.iter().zip(data.split(|&byte| byte == 0)) {
            self.write(name, part);
        }
    }

    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path().join(from), self.path().join(to)).expect("the file can be renamed");
    }

    /// Removes all files.
    pub fn clear(&self) {
        for entry in fs::read_dir(self.path()).expect("the folder can be read") {
            fs::remove_file(entry.expect("the folder can be read").path()).expect("the file can be removed");
        }
    }
}
