#![doc = include_str!("../README.md")]

pub mod families;
pub mod image;
pub mod prompt;
pub mod tokenizer;
pub mod video;

mod checkpoint;
mod error;
mod files;
mod inputs;
mod latest_image;
mod media;
mod processor;
mod stream;
mod warning;

pub use checkpoint::ExtraFiles;
pub use error::{ErrorKind, ProcessorError};
pub use families::FamilyRules;
pub use files::{describe_io_error, describe_json_error, is_git_lfs_pointer, without_byte_order_mark};
pub use inputs::{PaddingSide, ProcessedInputs, TokenBatch};
pub use latest_image::{image_attention_mask, latest_images, latest_images_in_branches};
pub use processor::{MAX_TILES, ProcessOptions, Processor};
pub use prompt::{
    Chat, Content, Message, MessageContent, PromptPart, Sample, SampleError, SampleProblem, SpecialTokensInText,
    TextLimits,
};
pub use stream::StreamDecoder;
pub use tokenizer::{Compatibility, END_OF_UTTERANCE, Tokenizer};
pub use video::{VideoError, VideoOptions, VideoSource};
pub use warning::ProcessorWarning;
