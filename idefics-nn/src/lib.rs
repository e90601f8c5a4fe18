#![doc = include_str!("../README.md")]

mod activation;
mod attention;
pub mod checkpoint;
mod config;
mod context;
mod device;
mod embedding;
mod flat;
pub mod formats;
mod gated_mlp;
mod init;
pub mod kernels;
mod kv_cache;
mod linear;
mod norm;
mod ops;
mod packed;
mod parameters;
pub mod profile;
mod rope;

pub use activation::Activation;
pub use attention::{attention, attention_weights};
pub use checkpoint::{Checkpoint, CheckpointError, LoadOptions, Quantization};
pub use config::ConfigError;
pub use context::{ContextCache, ContextView};
pub use device::beside;
pub use embedding::Embedding;
pub use gated_mlp::GatedMlp;
pub use init::normal;
pub use kv_cache::{KvCache, LayerCache};
pub use linear::{Linear, product};
pub use norm::{LayerNorm, RmsNorm};
pub use packed::{Activations, PackedFormat, PackedWeight};
pub use parameters::{ParameterMapper, ParameterVisitor, map_parameters, visit_parameters};
pub use rope::{RopeScaling, RotaryAngles, RotaryEmbedding};
