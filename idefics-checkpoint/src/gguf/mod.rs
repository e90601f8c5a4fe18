//! GGUF files, the models of llama.cpp: a strict reader of the container, and what it holds as a checkpoint.
//!
//! # The container
//! ```text
//! "GGUF" | u32 version | u64 n_tensors | u64 n_kv | n_kv × (key, u32 type, value) | n_tensors × info | padding | data
//! string = u64 length + bytes          array = u32 item type + u64 count + items
//! info   = string name | u32 n_dims | n_dims × u64 | u32 type | u64 offset
//! ```
//! All numbers are little-endian; versions 2 and 3 are the same but for the byte order that 3 allows, which is not read.
//! Dimensions are the fastest first. [`parse`] reads everything up to the data of a file that is mapped; values stay
//! where they are, and [`Metadata`] looks at them.
//!
//! # Nothing is guessed
//! A count is compared with the bytes that are left before anything is allocated; sizes and offsets are checked
//! arithmetic; a tensor lies inside the file, at a multiple of the alignment, and none overlaps another; names are unique.
//! Types that are not read are refused by name.
//!
//! # A model
//! [`GgufModel`] is a text model of the architecture `llama` and, beside it, the vision tower and connector of Idefics3 in
//! a file of the architecture `clip` (`mmproj-*.gguf`). Its tensors have the names and shapes of the original checkpoint,
//! and [`GgufModel::file`] says what the JSON files of such a folder would.
//!
//! Source: `docs/gguf.md` of ggml; `convert_hf_to_gguf.py` of llama.cpp.

mod config;
mod cursor;
mod error;
mod file;
mod find;
mod header;
mod model;
mod names;
mod rows;
mod tokenizer;
mod value;

pub use error::{GgufError, GgufFault};
pub use file::GgufFile;
pub use find::GgufPaths;
pub use header::{GgufHeader, GgufTensor, parse};
pub use model::{GgufModel, ModelFile};
pub(crate) use rows::GgufRows;
pub use value::{GgufArray, GgufValue, Metadata};
