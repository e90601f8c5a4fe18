//! Loads modules from checkpoints and saves them.
//!
//! [`LoadModule::load`] fills a module from a [`Checkpoint`](idefics_checkpoint::Checkpoint), tensor by tensor. A
//! tensor that is missing, has the wrong shape or dtype, or contains a non-finite value is an error that names the
//! tensor. (Values that stay memory-mapped are not checked.) Tensors that the module does not use are ignored;
//! [`LoadModule::unused`] lists them. Peak memory is the loaded weights plus one tensor.
//!
//! [`save`] writes a module atomically; [`write_quantized`] rewrites a checkpoint in another format.
//!
//! The module's field paths are the tensor names, so nothing is renamed while loading.

mod convert;
mod formats;
mod in_place;
mod load;
mod plan;
mod quantize;
mod random;
mod save;

pub use formats::Quantization;
pub use load::{LoadModule, LoadOptions, LoadProgress};
pub use plan::WeightMemory;
pub use quantize::write_quantized;
pub use random::fill_random;
pub use save::save;
