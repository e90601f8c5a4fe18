//! Errors of reading videos.

use std::path::PathBuf;
use std::time::Duration;

use crate::files::describe_io_error;
use crate::image::{ImageError, TileError};

/// Why a video could not be read.
///
/// The field `video` names the input: the path of a file or folder, or a URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The model family does not support videos.
    #[error(
        "models with `model_type` {family} cannot read videos and folders; use a SmolVLM2 model (`model_type` smolvlm), \
         or give the pictures one by one, as in FOLDER/*.jpg"
    )]
    NotSupported {
        /// The `model_type` of the family.
        family: &'static str,
    },

    /// The number of placeholders in the text differs from the number of videos.
    #[error("the text has {placeholders} <video> placeholders; expected {videos}, one per video")]
    Count {
        /// Number of placeholders in the text.
        placeholders: usize,
        /// Number of videos in the sample.
        videos: usize,
    },

    /// The number of entries in `videos` differs from the number of video parts that have no video of their own.
    #[error(
        "`videos` has {videos}, but `messages` has {parts} without a video; give one {{\"type\": \"video\"}} part per \
         video (a <video> inside a text counts only if special tokens in texts are parsed)"
    )]
    Parts {
        /// Number of entries in `videos`, with its noun: `2 videos`.
        videos: String,
        /// Number of video parts without a video of their own, with its noun: `1 video part`.
        parts: String,
    },

    /// The video has no frames.
    #[error(
        "{video}: there are no pictures; expected a list of picture files, or a folder with files whose names end with \
         .png, .jpg, .webp, .gif, .bmp, .tif, .avif, .jp2, .pnm or .tga"
    )]
    NoFrames {
        /// Name of the video.
        video: String,
    },

    /// A field of the video, or an option, has a value that is invalid or contradicts other fields.
    #[error("`{field}` of the video is {found}; expected {expected}")]
    Field {
        /// Name of the field, such as `fps`.
        field: &'static str,
        /// The value.
        found: String,
        /// The values that are accepted.
        expected: String,
    },

    /// More frames would become tiles than the limit allows.
    #[error(
        "{video}: {frames} frames would be shown to the model; at most {limit} are allowed; sample fewer \
         (--video-frames N), or raise the limit (--max-frames N)"
    )]
    TooManyFrames {
        /// Name of the video.
        video: String,
        /// Number of frames.
        frames: usize,
        /// Maximum number of frames.
        limit: usize,
    },

    /// The folder has more entries than are accepted.
    #[error("{video}: the folder has more than {limit} entries; give a folder that has only the frames of one video")]
    FolderTooLarge {
        /// Path of the folder.
        video: String,
        /// Maximum number of entries.
        limit: usize,
    },

    /// A folder could not be listed, or a file could not be opened.
    #[error("{}: cannot be read: {}", path.display(), describe_io_error(error))]
    Read {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        error: std::io::Error,
    },

    /// The file is a still picture.
    #[error("{video}: is a still {format} picture, not a video; give it as an image")]
    Picture {
        /// Name of the video.
        video: String,
        /// Format of the picture.
        format: &'static str,
    },

    /// The format of the file is not known.
    #[error(
        "{video}: expected a video (MP4, QuickTime, Matroska, WebM, AVI, MPEG, Ogg, FLV or ASF), an animated GIF, WebP \
         or PNG, or a folder of pictures; found data that starts with the bytes {found}"
    )]
    Format {
        /// Name of the video.
        video: String,
        /// The first bytes in hexadecimal digits.
        found: String,
    },

    /// The video is not a local file, but the program that decodes its format reads only local files.
    #[error("{video}: {format} videos are read from local files only; download the video and give its path")]
    NotLocal {
        /// Name of the video.
        video: String,
        /// Format of the file.
        format: &'static str,
    },

    /// The program that decodes this format is not installed.
    #[error(
        "{video}: {format} videos are decoded by the programs ffmpeg and ffprobe, and {program} is not installed; \
         install FFmpeg 5.1 or newer (Debian, Ubuntu: apt install ffmpeg; macOS: brew install ffmpeg), or give a folder \
         with the frames as pictures"
    )]
    NoProgram {
        /// Name of the video.
        video: String,
        /// Format of the file.
        format: &'static str,
        /// Name of the missing program.
        program: &'static str,
    },

    /// The program could not decode the video.
    #[error("{video}: {program} cannot decode it: {reason}")]
    Program {
        /// Name of the video.
        video: String,
        /// Name of the program.
        program: &'static str,
        /// What the program printed, shortened, or what is wrong with its output.
        reason: String,
    },

    /// The program took too long and was killed.
    #[error("{video}: {program} was stopped after {} seconds; cut the video into parts", limit.as_secs())]
    Timeout {
        /// Name of the video.
        video: String,
        /// Name of the program.
        program: &'static str,
        /// The time limit.
        limit: Duration,
    },

    /// A file or a frame could not be read.
    #[error(transparent)]
    Frame(#[from] TileError),
}

impl From<ImageError> for VideoError {
    fn from(error: ImageError) -> Self {
        Self::Frame(error.into())
    }
}
