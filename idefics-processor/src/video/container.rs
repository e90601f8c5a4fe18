//! Detects the format of a video file from its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::video::VideoError;

/// A format of video files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Container {
    /// Name for messages.
    pub(super) name: &'static str,
    /// Name of FFmpeg's demultiplexer. The name is passed to FFmpeg, so that it does not read the file as a playlist,
    /// which could refer to other files.
    pub(super) demuxer: &'static str,
}

pub(super) const AVI: Container = Container { name: "AVI", demuxer: "avi" };

/// Number of bytes that [`head`] reads for [`sniff`].
const HEAD: u64 = 512;

/// Reads the first bytes of a regular file.
pub(super) fn head(path: &Path) -> Result<Vec<u8>, VideoError> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    match read {
        Ok(_) => Ok(head),
        Err(error) => Err(VideoError::Read { path: path.to_owned(), error }),
    }
}

/// Returns whether a file that begins with `head` may be an animation.
pub(super) fn may_be_animated(head: &[u8]) -> bool {
    matches!(head, [b'G', b'I', b'F', b'8', ..] | [0x89, b'P', b'N', b'G', ..])
        || matches!(head, [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..])
}

/// Returns the format of a video file that begins with `head`. AVI files give `None`, because this crate reads them
/// without FFmpeg if it can.
pub(super) fn sniff(head: &[u8]) -> Option<Container> {
    let container = |name, demuxer| Some(Container { name, demuxer });
    match head {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => {
            // HEIF and AVIF pictures have the same structure.
            const PICTURES: [&[u8]; 8] = [b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"];
            match PICTURES.iter().any(|picture| brand.starts_with(picture)) {
                true => None,
                false if brand.starts_with(b"qt  ") => container("QuickTime", "mov"),
                false => container("MP4", "mov"),
            }
        }
        [_, _, _, _, b'm', b'o', b'o', b'v', ..] | [_, _, _, _, b'm', b'd', b'a', b't', ..] => {
            container("QuickTime", "mov")
        }
        [0x1a, 0x45, 0xdf, 0xa3, ..] => container("Matroska or WebM", "matroska"),
        [b'O', b'g', b'g', b'S', ..] => container("Ogg", "ogg"),
        [b'F', b'L', b'V', 1, ..] => container("FLV", "flv"),
        [0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11, ..] => container("ASF", "asf"),
        [0, 0, 1, 0xba, ..] => container("MPEG", "mpeg"),
        _ if [0, 188, 376].iter().all(|&at| head.get(at) == Some(&0x47)) => container("MPEG-TS", "mpegts"),
        _ => None,
    }
}
