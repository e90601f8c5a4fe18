//! Telling an image's format from its first bytes.

/// The formats that we decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Portable Network Graphics; of an animated one, the default image.
    Png,
    /// JPEG: baseline, extended 8-bit, progressive.
    Jpeg,
    /// WebP, lossy or lossless; of an animated one, the first frame.
    WebP,
    /// GIF; of an animated one, the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
}

impl Format {
    /// The format's usual name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
        }
    }

    /// Reads the format from the first bytes; a file's name and media type say nothing.
    ///
    /// # Errors
    /// What the bytes look like instead, in words for a message.
    pub fn sniff(bytes: &[u8]) -> Result<Self, String> {
        match bytes {
            [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Ok(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Self::Gif),
            [b'B', b'M', ..] if !is_text(bytes) => Ok(Self::Bmp),
            _ => Err(describe(bytes)),
        }
    }
}

/// Formats that people do pass, so that the message can name them.
fn describe(bytes: &[u8]) -> String {
    let known = match bytes {
        [] => "nothing",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF image",
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand.get(..4) {
            Some(b"avif" | b"avis") => "an AVIF image",
            Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1") => "a HEIC image",
            _ => "an MP4 or QuickTime video",
        },
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => "a JPEG 2000 image",
        [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] | [0xff, 0x0a, ..] => "a JPEG XL image",
        [0, 0, 1, 0, ..] => "a Windows icon",
        [0x76, 0x2f, 0x31, 0x01, ..] => "an OpenEXR image",
        [b'q', b'o', b'i', b'f', ..] => "a QOI image",
        [b'R', b'I', b'F', b'F', ..] => "a RIFF file (AVI or WAV)",
        [b'P', b'K', 3, 4, ..] => "a ZIP archive",
        [0x1f, 0x8b, ..] => "a gzip archive",
        [0x89, b'P', b'N', b'G', ..] => "a PNG signature that was damaged or cut short",
        _ if is_text(bytes) => return describe_text(bytes),
        _ => {
            let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            return format!("data that starts with the bytes {}", start.join(" "));
        }
    };
    known.to_owned()
}

fn describe_text(bytes: &[u8]) -> String {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let head = head.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if head.starts_with("<svg") || (head.starts_with("<?xml") || head.starts_with("<!")) && head.contains("<svg") {
        "an SVG drawing".to_owned()
    } else if head.starts_with("<!doctype html") || head.starts_with("<html") {
        "an HTML page".to_owned()
    } else if head.starts_with("version https://git-lfs") {
        "a Git LFS pointer (run git lfs pull)".to_owned()
    } else {
        "a text file".to_owned()
    }
}

/// Whether the first kilobyte is printable ASCII or UTF-8.
fn is_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        // A character cut by the end of the window is still text.
        Err(error) => error.error_len().is_none(),
    };
    valid && head.iter().all(|&byte| byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c))
}
