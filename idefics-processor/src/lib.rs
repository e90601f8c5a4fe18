#![doc = include_str!("../README.md")]

pub mod image;
pub mod prompt;
pub mod tokenizer;

mod checkpoint;
mod error;
mod inputs;
mod processor;
mod stream;

pub use error::{ErrorKind, ProcessorError};
pub use inputs::{PaddingSide, ProcessedInputs, TokenBatch};
pub use processor::{ProcessOptions, Processor};
pub use prompt::{Content, Message, PromptPart, Sample, SpecialTokensInText, TextLimits};
pub use stream::StreamDecoder;
pub use tokenizer::{Compatibility, Tokenizer};
