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

pub use attention::SelfAttention;
pub use branches::Branches;
pub use config::TextConfig;
pub use cross_attention::{Context, CrossAttention, Gate, GatedCrossAttentionLayer};
pub use cross_config::{AlphaType, CrossAttentionConfig};
pub use cross_decoder::{CrossAttentionDecoder, SeenContext};
pub use decoder::{CHUNK_TOKENS, Decoder, DecoderLayer, DecoderObserver, Unobserved};
pub use decoupled::{AdditionalEmbedding, AdditionalLinear, DecoupledEmbedding, DecoupledLinear};
pub use idefics_nn::{ConfigError, ContextCache, ContextView, GatedMlp, KvCache};
pub use positions::{Positions, SlotPositions};
pub use rope_config::RopeParameters;
