#![doc = include_str!("../README.md")]

mod activation;
mod attention;
pub mod checkpoint;
mod config;
mod context;
mod device;
mod embedding;
mod flat;
mod gated_mlp;
mod init;
mod key_values;
mod kv_cache;
mod linear;
mod norm;
mod ops;
mod packed;
mod parameters;
pub mod profile;
mod replay;
mod rope;
mod rope_scaling;

pub use activation::Activation;
pub use attention::{attention, attention_weights};
/// The version of Burn that this crate's tensors, devices and modules belong to.
pub use burn;
pub use checkpoint::{LoadModule, LoadOptions, Quantization};
pub use config::ConfigError;
pub use context::{ContextCache, ContextView};
pub use device::{beside, kept_bytes};
pub use embedding::Embedding;
pub use gated_mlp::GatedMlp;
pub use idefics_checkpoint::{Checkpoint, CheckpointError};
pub use idefics_kernels::Activations;
pub use idefics_kernels::formats::{FormatError, FourBitType, PackedFormat};
pub use init::normal;
pub use key_values::{KeyValues, QueryKeyValue};
pub use kv_cache::{KvCache, LayerCache};
pub use linear::{Linear, product};
pub use norm::{LayerNorm, RmsNorm};
pub use packed::PackedWeight;
pub use parameters::{ParameterMapper, ParameterVisitor, map_parameters, visit_parameters};
pub use replay::{DeviceLease, Replay, Step, can_record};
pub use rope::{RotaryAngles, RotaryEmbedding};
pub use rope_scaling::{LongRopeScaling, RopeScaling, YarnScaling};
