//! `idefics bench`

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::str::FromStr;

use clap::Args;

use super::from_one;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A shape with random weights instead of a model: idefics2-8b, idefics-9b, idefics-80b, or the path of a
    /// config.json.
    #[arg(long, value_name = "SHAPE")]
    pub(crate) random_weights: Option<OsString>,
    /// Decoder layers to keep, from the first; of a shape only, since a checkpoint is loaded whole or not at all.
    #[arg(long, value_name = "N", requires = "random_weights", value_parser = from_one::<NonZeroUsize>)]
    pub(crate) text_layers: Option<NonZeroUsize>,
    /// An image of that many pixels; may be repeated.
    #[arg(long = "image", value_name = "WxH")]
    pub(crate) images: Vec<ImageSize>,
    /// Tokens of the prompt, image tokens included; at least as many as the images need.
    #[arg(long, value_name = "N", default_value_t = 84)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value = "32", value_parser = from_one::<NonZeroUsize>)]
    pub(crate) new_tokens: NonZeroUsize,
    /// Rows that are answered together.
    #[arg(long, value_name = "N", default_value = "1", value_parser = from_one::<NonZeroUsize>)]
    pub(crate) batch: NonZeroUsize,
    /// Times that each stage is measured.
    #[arg(long, value_name = "N", default_value = "3", value_parser = from_one::<NonZeroUsize>)]
    pub(crate) runs: NonZeroUsize,
    /// Say what each kind of operation takes, on the CPU, and how much of what the machine's arithmetic or memory gives.
    #[arg(long)]
    pub(crate) profile: bool,
}

/// `630x476`, in pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageSize {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |side: &str| side.parse().ok().filter(|pixels| (1..=1 << 14).contains(pixels));
        let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        sides.map(|(width, height)| Self { width, height }).ok_or("expected a size like 630x476".to_owned())
    }
}
