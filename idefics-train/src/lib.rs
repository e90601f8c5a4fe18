#![doc = include_str!("../README.md")]
#![allow(clippy::disallowed_methods)] // losses, norms and optimiser state are read from the device

mod adamw;
mod batch;
mod error;
mod gradient_checkpointing;
mod gradients;
mod idefics1;
mod image_tokens;
mod labels;
mod schedule;
mod segments;
mod state;
mod trainable;
mod trainer;

pub use adamw::{AdamW, AdamWConfig, WeightDecay};
pub use batch::{LabelledText, TrainingBatch};
pub use error::{BatchError, TrainError};
pub use gradient_checkpointing::training_gradients_checkpointed;
pub use gradients::{Gradients, LossGradients};
pub use labels::LabelRecipe;
pub use schedule::Schedule;
pub use segments::{Chain, Segments};
pub use trainable::Trainable;
pub use trainer::{StepReport, Trainer, TrainingConfig};
