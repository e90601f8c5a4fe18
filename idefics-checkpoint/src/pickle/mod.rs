//! A strict, lazy reader of the zip files that `torch.save` writes: `pytorch_model.bin` and its shards.
//!
//! # The format
//! ```text
//! <folder>/data.pkl     a pickle program: the dictionary of tensors, each a view of a numbered storage
//! <folder>/data/<key>   one storage: raw elements
//! <folder>/version      of the container, 3
//! <folder>/byteorder    `little`; not in files from before 2023, which are taken as such, as PyTorch does
//! ```
//! Every entry is stored, not compressed, so a contiguous tensor is a range of the file. [`parse`] reads the zip
//! directory and `data.pkl` of a file that is mapped; no weight is touched before [`PickleTensor::bytes`], which copies
//! a transposed or strided view into row-major order.
//!
//! # Nothing is run
//! A pickle is a program that may call whatever it can name. Here it drives a stack machine that knows 31 of the 68
//! opcodes and 23 names; a call builds an ordered dictionary or records a view, and nothing else can be called. What
//! `torch.save` does not write for a dictionary of tensors is an error that names it, even where PyTorch would load it:
//! a list, a float, a hook, a negated view. Program size, stack, memo, strings, tensors and dimensions have limits;
//! a hostile program takes at most a hundred times its own size in memory, and none more than half a gigabyte.
//!
//! # Nothing is guessed
//! A tensor is listed only if its storage is there, has the length that the program claims, and holds every element of
//! the view; all of that is checked arithmetic. A view of more elements than its storage has is refused: by stride 0, a
//! kilobyte could ask for terabytes. Names are the dictionary's own, nested ones joined by a dot
//! (`module.layers.0.weight`), and a storage that no name leads to is an error: a program that lost a tensor must not
//! pass for one that never had it. Checksums are verified of `data.pkl` and what describes the file; not of the
//! storages, which would mean reading them.
//!
//! # Why the zip directory is read by hand
//! The `zip` crate (9.4) keeps the last of two equal names, finds the directory in front of trailing bytes and behind
//! leading ones, and does not compare a local header's name and sizes with the directory's: lenient, as an unpacker
//! should be, where this reader has to be strict. Of the format, only the directory, its 64-bit form and stored entries
//! are needed, for which `zip.rs` has room.

mod call;
mod cursor;
mod error;
mod global;
mod limits;
mod machine;
mod opcode;
mod parse;
mod tensor;
mod value;
mod zip;

pub use error::{PickleError, PickleFault};
pub use parse::parse;
pub use tensor::PickleTensor;
