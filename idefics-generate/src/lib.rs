#![doc = include_str!("../README.md")]

mod answer;
mod background;
pub mod beam;
pub mod bench;
mod config;
mod conversation;
mod device;
pub mod engine;
mod error;
mod feature_cache;
mod features;
mod folder;
mod generation;
mod generation_config;
#[cfg(feature = "grammar")]
mod grammar;
mod inputs;
pub mod inspect;
mod loading;
pub mod logits;
pub mod models;
mod pipeline;
pub mod placement;
mod prepared;
mod quantize;
mod quantize_gguf;
mod rank;
mod refill;
mod running;
pub mod stop_strings;
mod stream;
mod warm_up;
mod warning;
mod weights;

pub use answer::{Answer, Timings, Usage};
pub use background::BackgroundText;
pub use config::{
    FAMILIES, FamilyConfig, Idefics1Config, Idefics2Config, Idefics3Config, Idefics3ModelType, ModelConfig,
    ModelFamily, PublicModel, QuantizationConfig,
};
pub use conversation::Conversation;
pub use device::{
    DeviceChoice, DeviceError, DeviceInfo, DeviceKind, DeviceRates, Precision, device_memory_bytes, measure_device,
};
pub use error::{Error, ErrorKind};
pub use feature_cache::{ImageKey, image_key};
pub use features::{ImageBatch, ImageVectors, image_batches, rows_of_images};
pub use folder::load_processor;
pub use generation::{CancelToken, Controls, FinishReason, GeneratedLogprob, Generation, GraphCapture, TokenLogprob};
pub use generation_config::{
    EarlyStopping, EosTokenId, GenerationConfig, GenerationError, GenerationWarning, OneOrMany,
};
#[cfg(feature = "grammar")]
pub use grammar::{CompiledGrammar, Grammar, GrammarError, GrammarKind, GrammarVocabulary};
pub use inputs::{InputError, Prompts, SeenImages};
pub use loading::load_model;
pub use models::idefics1::Idefics1;
pub use models::idefics2::Idefics2;
pub use models::idefics3::Idefics3;
pub use models::{
    AssembledModel, Capturable, EncodeStage, LogitsToKeep, Model, ModelShape, StepwiseEncoder, VisionBatch,
};
pub use pipeline::{Idefics, LoadStage};
use placement::Placement;
pub use prepared::Prepared;
pub use quantize::quantize_folder;
pub use quantize_gguf::quantize_to_gguf;
pub use rank::{RankOptions, RankedLabel, Ranking};
pub use refill::AnswerSink;
pub use stream::TextStream;
pub use warm_up::WarmUp;
pub use warning::ModelWarning;
pub use weights::{UnknownWeightFormat, WeightFormat, WeightOptions};

/// The device on which tensors are created; [`DeviceChoice::open`] opens one.
pub use burn::tensor::Device;
pub use idefics_checkpoint::{Checkpoint, CheckpointError, CheckpointWarning, PicklePolicy};
#[cfg(feature = "hub")]
pub use idefics_hub::{HubError, HubErrorKind, HubProgress};
pub use idefics_nn as nn;
pub use idefics_nn::{DeviceLease, burn};
pub use idefics_perceiver as perceiver;
pub use idefics_processor as processor;
pub use idefics_text as text;
pub use idefics_vision as vision;
