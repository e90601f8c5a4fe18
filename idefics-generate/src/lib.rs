#![doc = include_str!("../README.md")]

mod answer;
pub mod beam;
mod config;
mod device;
mod error;
mod features;
mod generation;
mod generation_config;

#[cfg(feature = "hub")]
pub mod hub;
mod inputs;
pub mod inspect;
pub mod logits;
pub mod models;
mod pipeline;
pub mod stop_strings;
mod stream;
pub mod train;

pub use answer::{Answer, Timings, Usage};
pub use config::{Idefics2Config, ModelConfig};
pub use device::{DeviceChoice, DeviceError, Precision};
pub use error::{Error, ErrorKind};
pub use features::{ImageBatch, image_batches};
pub use generation::{CancelToken, Controls, FinishReason, GeneratedLogprob, Generation, TokenLogprob};
pub use generation_config::{
    EarlyStopping, EosTokenId, GenerationConfig, GenerationError, GenerationWarning, OneOrMany,
};
pub use inputs::{InputError, Prompts};
pub use models::idefics2::{Idefics2, LabelRecipe, LogitsToKeep};
pub use pipeline::{Idefics, LoadStage};
pub use stream::TextStream;

pub use idefics_nn as nn;
pub use idefics_perceiver as perceiver;
pub use idefics_processor as processor;
pub use idefics_text as text;
pub use idefics_vision as vision;
