//! GGUF files, the format of llama.cpp: a strict reader of the container, models in such files, and a writer.
//!
//! # The container
//! ```text
//! "GGUF" | u32 version | u64 n_tensors | u64 n_kv | n_kv × (key, u32 type, value) | n_tensors × info | padding | data
//! string = u64 length + bytes          array = u32 item type + u64 count + items
//! info   = string name | u32 n_dims | n_dims × u64 | u32 type | u64 offset
//! ```
//! All numbers are little-endian. Versions 2 and 3 differ only in that 3 also allows big-endian files, which are not
//! supported. The contiguous dimension of a tensor comes first. [`parse`] reads everything before the data of a mapped
//! file. The values of the metadata stay in the map, where [`Metadata`] reads them.
//!
//! # Checks
//! A count is compared with the size of the rest of the file before anything is allocated. Sizes and offsets are
//! computed with checked arithmetic. A tensor must lie inside the file, start at a multiple of the alignment, and
//! overlap no other tensor. Names must be unique. The error for an unsupported type names the type.
//!
//! # A model
//! A [`GgufModel`] consists of a text model of the architecture `llama` and, optionally, the vision tower and connector
//! of Idefics3 in a second file of the architecture `clip` (`mmproj-*.gguf`). The model's tensors have the names and
//! shapes of the original checkpoint. [`GgufModel::file`] returns the contents of the JSON files of the original
//! checkpoint.
//!
//! # Writing
//! [`GgufExport`] converts a checkpoint of the Idefics3 family to the metadata and tensors of such files. A [`GgufMix`]
//! sets the types of the tensors. [`write`](write()) writes a file.
//!
//! Source: `docs/gguf.md` of ggml; `convert_hf_to_gguf.py` of llama.cpp.

mod config;
mod cursor;
mod error;
mod export;
mod file;
mod find;
mod header;
mod mix;
mod model;
mod names;
mod new_tokenizer;
mod rows;
mod tokenizer;
mod value;
mod write;

pub use error::{GgufError, GgufFault};
pub use export::{GgufExport, NewRope, NewText, NewVision};
pub use file::GgufFile;
pub use find::GgufPaths;
pub use header::{GgufHeader, GgufTensor, parse};
pub use mix::{GgufMix, UnknownGgufMix};
pub use model::{GgufModel, ModelFile};
pub use new_tokenizer::{NewTokenizer, TokenizerFiles};
pub(crate) use rows::GgufRows;
pub use value::{GgufArray, GgufValue, Metadata};
pub use write::{NewBlocks, NewTensor, NewValue, write};
