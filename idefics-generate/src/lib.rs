#![doc = include_str!("../README.md")]

mod config;
mod device;
mod error;
mod features;
mod generation_config;
mod generator;
#[cfg(feature = "hub")]
pub mod hub;
mod inputs;
pub mod inspect;
pub mod models;
mod pipeline;
mod stream;
pub mod train;

pub use config::{Idefics2Config, ModelConfig};
pub use device::{DeviceChoice, DeviceError, Precision};
pub use error::{Error, ErrorKind};
pub use features::{ImageBatch, image_batches};
pub use generation_config::{EosTokenId, GenerationConfig, GenerationError};
pub use generator::{CancelToken, FinishReason, Generation};
pub use inputs::{InputError, Prompts};
pub use models::idefics2::{Idefics2, LabelRecipe, LogitsToKeep};
pub use pipeline::{Answer, Idefics, LoadStage, Timings, Usage};
pub use stream::TextStream;

pub use idefics_nn as nn;
pub use idefics_perceiver as perceiver;
pub use idefics_processor as processor;
pub use idefics_text as text;
pub use idefics_vision as vision;
