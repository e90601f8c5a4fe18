//! Modules from checkpoints, and back.
//!
//! [`LoadModule::load`] fills a module from a [`Checkpoint`](idefics_checkpoint::Checkpoint), tensor by tensor, and
//! accounts for every one: whatever is missing, of the wrong shape or dtype, or not finite is an error that names it
//! (memory-mapped values are not scanned). Tensors that nobody asks for are ignored: [`LoadModule::unused`] names them.
//! Peak memory is the loaded weights plus one tensor.
//!
//! [`save`] writes a module the same way, whole or not at all; [`write_quantized`] writes a checkpoint again in another
//! format.
//!
//! The module's field paths are the tensors' names, so nothing is renamed on the way.

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
