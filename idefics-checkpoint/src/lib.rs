#![doc = include_str!("../README.md")]

mod checkpoint;
mod error;
mod files;
pub mod gguf;
mod header;
mod index;
mod int4;
mod int4_config;
mod layouts;
mod map;
mod named_tensor;
mod opened;
pub mod pickle;
mod pytorch_files;
mod quant_state;
mod shards;
mod stored;
mod stored_error;
mod tensor;
mod warning;
mod write;

pub use checkpoint::Checkpoint;
pub use error::CheckpointError;
pub use files::UnexpectedFile;
pub use int4_config::Int4Layout;
pub use layouts::{four_bit_tensors, int4_tensors, int8_tensors, q4_tensors};
pub use named_tensor::NamedTensor;
pub use pytorch_files::PicklePolicy;
pub use quant_state::{QuantDtype, QuantState};
/// The element types of tensors, from the `safetensors` crate.
pub use safetensors::Dtype;
pub use shards::ShardWriter;
pub use stored::{StoredFormat, StoredWeight};
pub use stored_error::StoredWeightError;
pub use tensor::TensorEntry;
pub use warning::CheckpointWarning;
pub use write::write_atomically;
