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
mod machine;
mod opcode;
mod tensor;
mod value;
mod zip;

use std::path::Path;

pub use error::{PickleError, PickleFault};
pub use tensor::PickleTensor;

/// Bytes of `data.pkl`: a tensor takes about three hundred.
const MAX_PROGRAM_BYTES: usize = 16 << 20;
/// Tensors of one file; the largest public checkpoints have a few thousand.
const MAX_TENSORS: usize = 100_000;
/// Entries of one archive: a storage a tensor, and a handful that describe the file.
const MAX_ENTRIES: u64 = MAX_TENSORS as u64 + 100;
/// Bytes of a tensor's name, and of an entry's.
const MAX_NAME_BYTES: usize = 1024;

/// Lists the tensors of `file`, the whole content of a PyTorch file, in the order that the program names them.
///
/// `path` is for the message of an error only.
///
/// # Errors
/// [`PickleError`] if the file is not, in every detail, what `torch.save` writes for a dictionary of tensors.
pub fn parse(path: &Path, file: &[u8]) -> Result<Vec<PickleTensor>, PickleError> {
    list_tensors(file).map_err(|fault| PickleError { path: path.to_owned(), fault })
}

fn list_tensors(file: &[u8]) -> Result<Vec<PickleTensor>, PickleFault> {
    let archive = zip::Archive::read(file)?;
    if archive.is_torch_script() {
        return Err(PickleFault::TorchScript);
    }
    check_version(archive.checked("version")?)?;
    if archive.has("byteorder") {
        let found = archive.checked("byteorder")?;
        if found.trim_ascii() != b"little" {
            return Err(PickleFault::ByteOrder { found: excerpt(found) });
        }
    }
    let program = archive.checked("data.pkl")?;
    let heap = machine::run(program)?;
    tensor::list(&heap, &archive)
}

/// PyTorch reads containers 1 to 10 (`caffe2/serialize/versions.h`); for `torch.save` they are all alike.
fn check_version(version: &[u8]) -> Result<(), PickleFault> {
    match std::str::from_utf8(version.trim_ascii()).map(str::parse::<u64>) {
        Ok(Ok(1..=10)) => Ok(()),
        _ => Err(PickleFault::Version { found: excerpt(version) }),
    }
}

/// The start of a text that should have been short.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).trim().to_owned()
}
