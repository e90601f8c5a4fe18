//! A strict, lazy reader for the zip files that `torch.save` writes: `pytorch_model.bin` and its shards.
//!
//! # Format
//! ```text
//! <folder>/data.pkl     a pickle program: the dictionary of tensors, each a view of a numbered storage
//! <folder>/data/<key>   one storage: raw elements
//! <folder>/version      version of the container, 3
//! <folder>/byteorder    `little`; absent from files written before 2023, which PyTorch also takes as little-endian
//! ```
//! Entries are stored without compression, so a contiguous tensor is a byte range of the file. [`parse`] reads the zip
//! directory and `data.pkl` of a mapped file. Weights are not read before [`PickleTensor::bytes`] is called, which
//! copies transposed and strided views into row-major order.
//!
//! # Nothing is executed
//! A pickle is a program that may call anything it can name. This reader interprets it with a stack machine that
//! supports 31 of the 68 opcodes and 23 names. A call can only create an ordered dictionary or record a view. Anything
//! that `torch.save` does not write for a dictionary of tensors is an error, even if PyTorch would load it: a list, a
//! float, a hook, a negated view. The error names what was found. Program size, stack, memo, strings, tensors and
//! dimensions have limits. A hostile program takes at most a hundred times its own size in memory, and never more than
//! half a gigabyte.
//!
//! # Nothing is guessed
//! A tensor is listed only if its storage exists, has the length that the program claims, and contains every element
//! of the view. These checks use checked arithmetic. A view with more elements than its storage is rejected, because
//! with a stride of 0, a file of a kilobyte could claim terabytes. Tensor names are the keys of the dictionary. The
//! keys of nested dictionaries are joined by dots (`module.layers.0.weight`). A storage that belongs to no tensor is
//! an error, so that the loss of a tensor from a file is noticed. Checksums are verified for `data.pkl` and the other
//! entries that describe the file. They are not verified for the storages, which would have to be read completely.
//!
//! # Why the zip directory is parsed here
//! The `zip` crate (9.4) keeps the last of two entries with the same name, finds the directory despite leading or
//! trailing bytes, and does not compare the name and sizes of a local header with the directory. An unpacker should
//! be that lenient, but this reader has to be strict. It needs only a small part of the format: the directory, its
//! 64-bit form, and entries without compression.

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
