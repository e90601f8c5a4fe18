#![doc = include_str!("../README.md")]

pub mod clip;
mod config;
mod encoder;
mod patches;
mod siglip;

pub use config::VisionConfig;
pub use encoder::{Attention, Encoder, EncoderLayer, Mlp};
pub use idefics_nn::ConfigError;
pub use patches::{PatchError, PatchGrid, PatchLayout, plan_batches};
pub use siglip::{PatchEmbedding, VisionEmbeddings, VisionTransformer, patch_mask};
