#![doc = include_str!("../README.md")]

pub mod clip;
mod config;
mod encoder;
mod patches;
mod siglip;

pub use config::VisionConfig;
pub use encoder::{Attention, Encoder, EncoderLayer, Mlp};
/// Loading of checkpoints, and what else the components share; [`nn::burn`] is Burn.
pub use idefics_nn as nn;
pub use idefics_nn::{Activation, ConfigError, burn};
pub use patches::{PatchError, PatchGrid, PatchLayout, plan_batches};
pub use siglip::{PatchEmbedding, VisionEmbeddings, VisionTransformer, patch_mask};
