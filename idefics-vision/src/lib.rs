#![doc = include_str!("../README.md")]

pub mod clip;
mod config;
mod encoder;
mod patches;
mod siglip;

pub use config::VisionConfig;
pub use encoder::{Attention, Encoder, EncoderLayer, Mlp};
/// Checkpoint loading and other items shared by all components. The crate re-exports Burn as [`nn::burn`].
pub use idefics_nn as nn;
pub use idefics_nn::{Activation, ConfigError, burn};
pub use patches::{PatchError, PatchGrid, PatchLayout, plan_batches};
pub use siglip::{PatchEmbedding, VisionEmbeddings, VisionTransformer, patch_mask};
