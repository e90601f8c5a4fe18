//! Writes GGUF files of version 3.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use idefics_kernels::formats::GgufType;

use crate::{CheckpointError, write_atomically};

/// Alignment in bytes: the data and every tensor begin at a multiple of it.
const ALIGNMENT: usize = 32;

/// A value of the metadata to be written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NewValue {
    /// A u32.
    Unsigned(u32),
    /// An f32.
    Float(f32),
    /// A bool.
    Bool(bool),
    /// Text.
    Text(String),
    /// An array of i32.
    Numbers(Vec<i32>),
    /// An array of f32.
    Floats(Vec<f32>),
    /// An array of texts.
    Texts(Vec<String>),
}

/// A tensor to be written. Its blocks are computed when they are written, so that only one tensor is in memory at a
/// time.
pub struct NewTensor<'a> {
    /// Name of the tensor in the file.
    pub name: String,
    /// Dimensions, the contiguous one first.
    pub dims: Vec<usize>,
    /// Type of the blocks.
    pub kind: GgufType,
    /// Computes the blocks.
    pub blocks: NewBlocks<'a>,
}

/// A function that computes the blocks of a tensor.
pub type NewBlocks<'a> = Box<dyn Fn() -> Result<Cow<'a, [u8]>, CheckpointError> + 'a>;

impl fmt::Debug for NewTensor<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, dims, kind, blocks: _ } = self;
        formatter
            .debug_struct("NewTensor")
            .field("name", name)
            .field("dims", dims)
            .field("kind", kind)
            .finish_non_exhaustive()
    }
}

impl NewTensor<'_> {
    /// Returns the size of the blocks in bytes.
    ///
    /// # Panics
    /// If a row is not a whole number of blocks.
    pub fn len_bytes(&self) -> usize {
        let row = self.kind.row_bytes(self.dims[0]).expect("a row consists of whole blocks");
        row * self.dims[1..].iter().product::<usize>()
    }
}

/// Writes a file atomically. After each tensor, `done` is called with the size of that tensor in bytes. If `done`
/// returns an error, no file is created.
///
/// # Errors
/// [`CheckpointError::Write`], and the errors of [`NewTensor::blocks`] and `done`.
///
/// # Panics
/// If a tensor has no dimensions, if its rows are not whole blocks, or if the size of its blocks does not match its
/// dimensions.
pub fn write<E: From<CheckpointError>>(
    path: &Path,
    metadata: &[(String, NewValue)],
    tensors: &[NewTensor<'_>],
    mut done: impl FnMut(u64) -> Result<(), E>,
) -> Result<(), E> {
    let mut failed = None;
    let written = write_atomically(path, |file| {
        file.write_all(&header(metadata, tensors))?;
        for tensor in tensors {
            let stopped = |error: E, failed: &mut Option<E>| {
                *failed = Some(error);
                io::Error::other("stopped")
            };
            let blocks = (tensor.blocks)().map_err(|error| stopped(error.into(), &mut failed))?;
            assert_eq!(blocks.len(), tensor.len_bytes(), "the blocks of `{}` must fit its dimensions", tensor.name);
            file.write_all(&blocks)?;
            file.write_all(&[0; ALIGNMENT][..padding(blocks.len())])?;
            done(blocks.len() as u64).map_err(|error| stopped(error, &mut failed))?;
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

/// Builds all bytes before the data of the tensors.
fn header(metadata: &[(String, NewValue)], tensors: &[NewTensor<'_>]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| out.extend((*dim as u64).to_le_bytes()));
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.len_bytes() + padding(tensor.len_bytes());
    }
    out.resize(out.len() + padding(out.len()), 0);
    out
}

/// Returns the number of bytes from `len` up to the next multiple of the alignment.
fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT) - len
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl NewValue {
    /// Writes the type and the value.
    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::Unsigned(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Float(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Self::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(out, value);
            }
            Self::Numbers(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::Floats(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::Texts(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| text(out, value));
            }
        }
    }
}
