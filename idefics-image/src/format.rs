//! Detects the format of an image from its first bytes.

use crate::avif::is_avif;
use crate::ico::is_cursor;
use crate::jpeg2000;
use crate::pnm::is_pnm;
use crate::tga::is_tga;

/// The supported image formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Portable Network Graphics. If the file is animated, its default image is decoded.
    Png,
    /// JPEG: baseline, extended 8-bit, progressive.
    Jpeg,
    /// WebP, lossy or lossless. If the file is animated, its first frame is decoded.
    WebP,
    /// GIF. If the file is animated, its first frame is decoded.
    Gif,
    /// Windows or OS/2 bitmap.
    Bmp,
    /// Netpbm formats: PBM, PGM and PPM, plain (ASCII) and raw (binary), and grey PFM.
    Pnm,
    /// Windows icon. The largest image in it is decoded.
    Ico,
    /// Windows cursor. The largest image in it is decoded.
    Cur,
    /// Truevision TGA.
    Tga,
    /// AVIF. If the file is animated, its still image is decoded, or its first frame if it has no still image.
    Avif,
    /// JPEG 2000: a JP2 file or a bare codestream.
    Jpeg2000,
    /// TIFF, classic or BigTIFF. The first page is decoded unless [`DecodeOptions::page`](crate::DecodeOptions::page)
    /// selects another page.
    Tiff,
}

impl Format {
    /// Returns the usual name of the format, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Pnm => "PNM",
            Self::Ico => "ICO",
            Self::Cur => "CUR",
            Self::Tga => "TGA",
            Self::Avif => "AVIF",
            Self::Jpeg2000 => "JPEG 2000",
            Self::Tiff => "TIFF",
        }
    }

    /// Detects the format from the first bytes. File names and media types are not used.
    ///
    /// # Errors
    /// A text for error messages: what the bytes look like, and a suggestion of what to do.
    pub fn sniff(bytes: &[u8]) -> Result<Self, String> {
        match bytes {
            [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Ok(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Self::Gif),
            // Some writers swap the bytes of the version number; Pillow accepts both orders.
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Ok(Self::Tiff),
            [b'I', b'I', 0, 42, ..] | [b'M', b'M', 42, 0, ..] => Ok(Self::Tiff),
            [b'B', b'M', ..] if !is_text(bytes) => Ok(Self::Bmp),
            [0, 0, 1, 0, ..] => Ok(Self::Ico),
            _ if bytes.starts_with(jpeg2000::JP2) || bytes.starts_with(jpeg2000::CODESTREAM) => Ok(Self::Jpeg2000),
            _ if is_avif(bytes) => Ok(Self::Avif),
            _ if is_cursor(bytes) => Ok(Self::Cur),
            _ if is_pnm(bytes) => Ok(Self::Pnm),
            // TGA has no magic number, so it is tried last.
            _ if is_tga(bytes) => Ok(Self::Tga),
            _ => Err(describe(bytes)),
        }
    }
}

/// Describes bytes of an unsupported format: names the file type if it is a common one, and suggests what to do.
fn describe(bytes: &[u8]) -> String {
    const CONVERT: &str = "convert it to PNG or JPEG";
    const RAW: (&str, &str) = ("a camera raw file", "export it as JPEG, or develop it with dcraw or darktable-cli");
    let (found, remedy) = match bytes {
        [] => ("nothing", "check that it was written or downloaded completely"),
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand.get(..4) {
            Some(b"avif" | b"avis") => ("an AVIF image that was damaged or cut short", "download it again"),
            Some(b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1") => {
                ("a HEIC image", "convert it with heif-convert (Debian's libheif-examples), or export it as JPEG")
            }
            Some(b"crx ") => RAW,
            _ => ("an MP4 or QuickTime video", "give its frames as images (ffmpeg -i FILE frame%04d.png)"),
        },
        [b'F', b'U', b'J', b'I', b'F', b'I', b'L', b'M', ..] | [b'I', b'I', b'R', b'O' | b'S', ..] => RAW,
        [b'I', b'I', b'U', 0, ..] => RAW,
        [b'%', b'P', b'D', b'F', ..] => ("a PDF document", "convert its pages with pdftoppm -png (poppler-utils)"),
        [b'8', b'B', b'P', b'S', ..] => ("a Photoshop document", "export it as PNG or JPEG"),
        [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] | [0xff, 0x0a, ..] => {
            ("a JPEG XL image", "convert it with djxl (Debian's libjxl-tools)")
        }
        [0x76, 0x2f, 0x31, 0x01, ..] => ("an OpenEXR image", CONVERT),
        [b'q', b'o', b'i', b'f', ..] => ("a QOI image", CONVERT),
        [b'P', b'7', b'\n', ..] => ("a PAM image", "convert it with pamtopnm (netpbm) or to PNG"),
        [b'P', b'F', b'\n', ..] => ("a PFM image in colour", CONVERT),
        [b'R', b'I', b'F', b'F', ..] => ("a RIFF file (AVI or WAV)", "give an image file"),
        [b'P', b'K', 3, 4, ..] => ("a ZIP archive", "unpack it"),
        [0x1f, 0x8b, ..] => ("a gzip archive", "unpack it"),
        [0x89, b'P', b'N', b'G', ..] => ("a PNG signature that was damaged or cut short", "download it again"),
        _ if is_text(bytes) => describe_text(bytes),
        _ => {
            let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            return format!("data that starts with the bytes {}; {CONVERT}", start.join(" "));
        }
    };
    format!("{found}; {remedy}")
}

fn describe_text(bytes: &[u8]) -> (&'static str, &'static str) {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let head = head.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if head.starts_with("<svg") || (head.starts_with("<?xml") || head.starts_with("<!")) && head.contains("<svg") {
        ("an SVG drawing", "convert it with rsvg-convert (Debian's librsvg2-bin)")
    } else if head.starts_with("<!doctype html") || head.starts_with("<html") {
        ("an HTML page", "check the address it was downloaded from")
    } else if head.starts_with("version https://git-lfs") {
        ("a Git LFS pointer", "run git lfs pull")
    } else {
        ("a text file", "give an image file")
    }
}

/// Returns whether the first kilobyte is ASCII or UTF-8 text without control characters other than white space.
fn is_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(1024)];
    let valid = match std::str::from_utf8(head) {
        Ok(_) => true,
        // The end of the kilobyte may cut a character.
        Err(error) => error.error_len().is_none(),
    };
    valid && head.iter().all(|&byte| byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c))
}
