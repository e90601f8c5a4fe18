//! Options of a call, and the rules of a family for videos.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::video::VideoSampling;

/// Maximum number of frames of a video that become tiles, unless [`VideoOptions::max_frames`] is set.
pub const MAX_FRAMES: usize = 512;

/// How videos are read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoOptions {
    /// Frames per second of a video if neither the sample nor the file states the rate. `None` means 24, as in the
    /// reference.
    pub native_fps: Option<f64>,
    /// Frames per second to sample. `None` uses the setting of the checkpoint.
    pub target_fps: Option<f64>,
    /// Maximum number of frames to sample. `None` uses the setting of the checkpoint.
    pub num_frames: Option<NonZeroUsize>,
    /// Maximum number of frames of a video that become tiles. More frames are an error. `None` means [`MAX_FRAMES`].
    pub max_frames: Option<NonZeroUsize>,
    /// Time after which the programs `ffprobe` and `ffmpeg` are killed.
    pub decoder_timeout: Duration,
}

impl Default for VideoOptions {
    fn default() -> Self {
        Self {
            native_fps: None,
            target_fps: None,
            num_frames: None,
            max_frames: None,
            decoder_timeout: Duration::from_secs(600),
        }
    }
}

/// How videos are shown to the models of a family.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct VideoRules {
    /// The sampling for checkpoints whose files do not set it.
    pub sampling: VideoSampling,
    /// The chat template for conversations with videos. It replaces the template of the checkpoint.
    pub chat_template: &'static str,
}

impl VideoRules {
    /// Creates the rules of a family.
    pub const fn new(sampling: VideoSampling, chat_template: &'static str) -> Self {
        Self { sampling, chat_template }
    }
}
