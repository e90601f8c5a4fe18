//! Videos: from a sample to frames, and from frames to tiles and text.
//!
//! [`VideoSource`] says where the frames are. `VideoReader` finds the number of frames and their rate, chooses frames
//! ([`VideoSampling`]) and decodes up to the last chosen one. Each chosen frame becomes a tile immediately, so that
//! only one decoded frame is in memory at a time. The module `text` writes the part of the prompt that represents a
//! video.
//!
//! Source: `SmolVLMProcessor` and `SmolVLMVideoProcessor` of transformers 5.23. `SmolVLMVideoProcessor` requires
//! torchvision. Here, the pixels are those of the image processor `SmolVLMImageProcessorPil`, without splitting.

mod config;
mod container;
mod error;
mod ffmpeg;
mod folder;
mod options;
mod reader;
mod sampling;
mod source;
mod text;

pub(crate) use config::{VideoSettings, settings};
pub use error::VideoError;
pub use options::{MAX_FRAMES, VideoOptions, VideoRules};
pub(crate) use reader::VideoReader;
pub use sampling::{SampledVideo, VideoSampling};
pub use source::{MediumKind, VideoFrames, VideoSource};
pub(crate) use text::{Medium, VIDEO_TOKEN, split_media, write_video};
