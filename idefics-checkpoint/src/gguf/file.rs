//! Opens a GGUF file, or all parts of a GGUF file that was split.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::find::Split;
use super::header::{GgufHeader, parse};
use super::{GgufError, GgufFault, GgufTensor, Metadata};
use crate::CheckpointError;
use crate::map::map_file;

/// A memory-mapped GGUF file, with all of its parts if it was split.
#[derive(Debug, Clone)]
pub struct GgufFile {
    path: PathBuf,
    parts: Vec<Part>,
}

/// A GGUF file that was not split, or one part of a file that was split.
#[derive(Debug, Clone)]
struct Part {
    /// The name of the file without its folder.
    name: String,
    map: Arc<Mmap>,
    header: GgufHeader,
}

impl Part {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let map = map_file(path)?;
        let header = parse(path, &map)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, map, header })
    }

    fn metadata<'a>(&'a self, path: &'a Path) -> Metadata<'a> {
        self.header.metadata(path, &self.map)
    }
}

impl GgufFile {
    /// Maps a file. If it is the first of several parts (`name-00001-of-00003.gguf`), also maps the other parts.
    ///
    /// # Errors
    /// [`CheckpointError::Gguf`] if a file is invalid or the parts do not belong together. [`CheckpointError::Io`] if a
    /// file cannot be read.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let first = Part::open(path)?;
        let mut file = Self { path: path.to_owned(), parts: vec![first] };
        file.open_other_parts()?;
        Ok(file)
    }

    fn open_other_parts(&mut self) -> Result<(), CheckpointError> {
        let metadata = self.metadata();
        let count = metadata.number("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(());
        }
        let (number, n_tensors) = (metadata.number("split.no")?, metadata.number("split.tensors.count")?);
        let split = Split::of(&self.path).filter(|split| split.count == count && split.number == 1);
        let Some(split) = split.filter(|_| number == Some(0)) else {
            let reason = format!(
                "it is one of {count} parts; give the first part, and keep the file names NAME-00001-of-{count:05}.gguf \
                 and so on"
            );
            return Err(self.error(GgufFault::Files { reason }).into());
        };
        for number in 2..=count {
            let path = split.part(number);
            if !path.is_file() {
                let reason = format!("part {number} of {count} is missing; download it into the same folder");
                return Err(GgufError::new(&path, GgufFault::Files { reason }).into());
            }
            let part = Part::open(&path)?;
            let metadata = part.metadata(&path);
            if (metadata.number("split.no")?, metadata.number("split.count")?) != (Some(number - 1), Some(count)) {
                let reason =
                    format!("its metadata does not say that it is part {number} of {count}; download it again");
                return Err(GgufError::new(&path, GgufFault::Files { reason }).into());
            }
            self.parts.push(part);
        }
        let found: usize = self.parts.iter().map(|part| part.header.tensors().len()).sum();
        if let Some(expected) = n_tensors.filter(|expected| *expected != found) {
            let reason = format!(
                "the {count} parts have {found} tensors; expected {expected} (`split.tensors.count`); download them \
                 again"
            );
            return Err(self.error(GgufFault::Files { reason }).into());
        }
        let mut names = HashSet::new();
        for tensor in self.parts.iter().flat_map(|part| part.header.tensors()) {
            if !names.insert(tensor.name.as_str()) {
                let reason = format!("tensor `{}` occurs in two parts; download them again", tensor.name);
                return Err(self.error(GgufFault::Files { reason }).into());
            }
        }
        Ok(())
    }

    /// Returns the path of the file, or of its first part.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the metadata. If the file was split, this is the metadata of the first part.
    pub fn metadata(&self) -> Metadata<'_> {
        self.parts[0].metadata(&self.path)
    }

    /// Returns the tensors of all parts.
    pub fn tensors(&self) -> impl Iterator<Item = &GgufTensor> {
        self.parts.iter().flat_map(|part| part.header.tensors())
    }

    /// Returns each tensor with the name and the map of the file that holds it.
    pub(super) fn mapped_tensors(&self) -> impl Iterator<Item = (&GgufTensor, &str, &Arc<Mmap>)> {
        self.parts
            .iter()
            .flat_map(|part| part.header.tensors().iter().map(move |tensor| (tensor, part.name.as_str(), &part.map)))
    }

    /// Finds a tensor by name, and returns it with its bytes. Returns `None` if there is no such tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<(&GgufTensor, &[u8])> {
        let (tensor, _, map) = self.mapped_tensors().find(|(tensor, ..)| tensor.name == name)?;
        Some((tensor, &map[tensor.range.clone()]))
    }

    pub(super) fn error(&self, fault: GgufFault) -> GgufError {
        GgufError::new(&self.path, fault)
    }
}
