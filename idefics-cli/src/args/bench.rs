//! `idefics bench`

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::str::FromStr;

use clap::Args;

use idefics_generate::processor::video::MAX_FRAMES;

use super::positive;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Use random weights in this shape instead of a model: a name printed by `idefics --json models`, such as
    /// smolvlm-256m or idefics2-8b, or the path of a config.json.
    #[arg(long, value_name = "SHAPE")]
    pub(crate) random_weights: Option<OsString>,
    /// Keep only the first N decoder layers. Needs --random-weights: checkpoints are always loaded whole.
    #[arg(long, value_name = "N", requires = "random_weights", value_parser = positive::<NonZeroUsize>)]
    pub(crate) text_layers: Option<NonZeroUsize>,
    /// Size of an image in the prompt, in pixels. Repeat the option for several images.
    #[arg(long = "image", value_name = "WxH")]
    pub(crate) images: Vec<ImageSize>,
    /// Width and height of a video in the prompt, in pixels, and its number of frames. All frames are encoded, each as
    /// one tile. Only SmolVLM2 reads videos. Repeat the option for several videos.
    #[arg(long = "video", value_name = "WxHxFRAMES")]
    pub(crate) videos: Vec<VideoSize>,
    /// Number of prompt tokens, including image tokens. Must be at least the number of image tokens.
    #[arg(long, value_name = "N", default_value_t = 84)]
    pub(crate) prompt_tokens: usize,
    /// Number of tokens to generate.
    #[arg(long, value_name = "N", default_value = "32", value_parser = positive::<NonZeroUsize>)]
    pub(crate) new_tokens: NonZeroUsize,
    /// Batch size: number of equal prompts that run together.
    #[arg(long, value_name = "N", default_value = "1", value_parser = positive::<NonZeroUsize>)]
    pub(crate) batch: NonZeroUsize,
    /// Number of measurements of each stage.
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive::<NonZeroUsize>)]
    pub(crate) runs: NonZeroUsize,
    /// Also measure the engine with these numbers of clients, for example 1,2,4,8. Each client asks one question at a
    /// time, with the given images and lengths.
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = positive::<NonZeroUsize>)]
    pub(crate) clients: Vec<NonZeroUsize>,
    /// On the CPU, print the time of each kind of operation, and which fraction of the machine's peak arithmetic rate
    /// or memory bandwidth it reaches.
    #[arg(long)]
    pub(crate) profile: bool,
}

/// Width and height of an image in pixels, each from 1 to 16384, written `630x476`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageSize {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl ImageSize {
    fn read(text: &str) -> Option<Self> {
        let side = |side: &str| side.parse().ok().filter(|pixels| (1..=1 << 14).contains(pixels));
        let (width, height) = text.split_once('x')?;
        Some(Self { width: side(width)?, height: side(height)? })
    }
}

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text).ok_or("expected a size like 630x476".to_owned())
    }
}

/// Size of the frames of a video in pixels, and the number of frames, written `640x360x16`. There are 1 to
/// [`MAX_FRAMES`] frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VideoSize {
    pub(crate) frame: ImageSize,
    pub(crate) frames: usize,
}

impl FromStr for VideoSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = text.rsplit_once('x').and_then(|(frame, frames)| {
            let frames = frames.parse().ok().filter(|frames| (1..=MAX_FRAMES).contains(frames))?;
            Some(Self { frame: ImageSize::read(frame)?, frames })
        });
        read.ok_or_else(|| {
            format!("expected a size and a number of frames like 640x360x16, at most {MAX_FRAMES} frames")
        })
    }
}
