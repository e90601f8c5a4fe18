#![doc = include_str!("../README.md")]

mod attention;
mod branches;
mod config;
mod cross_attention;
mod cross_config;
mod cross_decoder;
mod decoder;
mod decoupled;
mod mask;
mod positions;
mod rope_config;
mod stack;

pub use attention::SelfAttention;
pub use branches::Branches;
pub use config::TextConfig;
pub use cross_attention::{Context, CrossAttention, Gate, GatedCrossAttentionLayer};
pub use cross_config::{AlphaType, CrossAttentionConfig};
pub use cross_decoder::CrossAttentionDecoder;
pub use decoder::{Decoder, DecoderLayer};
pub use decoupled::{DecoupledEmbedding, DecoupledLinear};
/// Modules shared by all components, checkpoint loading, and Burn as [`nn::burn`].
pub use idefics_nn as nn;
pub use idefics_nn::{Activation, ConfigError, ContextCache, ContextView, GatedMlp, KeyValues, KvCache, burn};
pub use positions::{PositionRules, Positions, SeenContext, SlotPositions};
pub use rope_config::RopeParameters;
pub use stack::{CHUNK_TOKENS, DecoderObserver, DecoderStack, NoObserver};
