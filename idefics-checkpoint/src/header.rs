//! Reads the header of a safetensors file. The header is not trusted.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserializer;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

use crate::files::UnexpectedFile;
use crate::map::map_file;
use crate::{CheckpointError, TensorEntry};

/// Maximum length of a header, in bytes. Real checkpoints take at most a few hundred bytes per tensor, so this is
/// enough for about a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Maps one safetensors file and lists its tensors.
pub(crate) fn read_file(path: &Path, name: &str) -> Result<BTreeMap<String, TensorEntry>, CheckpointError> {
    let map = map_file(path)?;
    if let Some(found) = UnexpectedFile::detect(&map) {
        return Err(CheckpointError::UnexpectedFile { path: path.to_owned(), found });
    }
    let tensors = parse(path, &map)?;
    Ok(tensors
        .into_iter()
        .map(|tensor| {
            let entry = TensorEntry {
                dtype: tensor.dtype,
                shape: tensor.shape,
                file: name.to_owned(),
                map: map.clone(),
                start: tensor.start,
                end: tensor.end,
                is_mapped_file: true,
                rows: None,
            };
            (tensor.name, entry)
        })
        .collect())
}

/// A tensor as described by the header; `start..end` is its byte range in the file.
#[derive(Debug)]
struct HeaderTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// Lists the tensors of a file and checks that they cover its data without gaps or overlaps.
fn parse(path: &Path, file: &[u8]) -> Result<Vec<HeaderTensor>, CheckpointError> {
    let header_error = |reason: String| CheckpointError::Header { path: path.to_owned(), reason };
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or_else(|| header_error("it has fewer than the 8 bytes of the header length".to_owned()))?;
    let claimed = u64::from_le_bytes(*length);
    if claimed > MAX_HEADER_BYTES {
        return Err(CheckpointError::HeaderLength { path: path.to_owned(), claimed, limit: MAX_HEADER_BYTES });
    }
    let header_len = usize::try_from(claimed).map_err(|error| header_error(error.to_string()))?;
    let Some(header) = rest.get(..header_len) else {
        return Err(CheckpointError::Truncated {
            path: path.to_owned(),
            what: "the header".to_owned(),
            expected: 8 + claimed,
            found: file.len() as u64,
        });
    };
    if header.first() != Some(&b'{') {
        return Err(header_error("the header does not start with `{`".to_owned()));
    }
    check_duplicates(path, header)?;

    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| header_error(error.to_string()))?;
    let data_start = 8 + header_len;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).ok_or_else(|| header_error(format!("tensor `{name}` has no entry")))?;
        let (start, end) = info.data_offsets;
        let end_in_file =
            data_start.checked_add(end).ok_or_else(|| header_error(format!("the end of tensor `{name}` overflows")))?;
        if end_in_file > file.len() {
            return Err(CheckpointError::Truncated {
                path: path.to_owned(),
                what: format!("tensor `{name}`"),
                expected: end_in_file as u64,
                found: file.len() as u64,
            });
        }
        tensors.push(HeaderTensor {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            start: data_start + start,
            end: end_in_file,
        });
    }
    // The `safetensors` crate checks that shapes match offsets, and rejects gaps, overlaps and trailing bytes.
    SafeTensors::read_metadata(file).map_err(|error| header_error(error.to_string()))?;
    Ok(tensors)
}

/// Rejects duplicate tensor names. The `safetensors` crate parses the header into a map, which silently keeps only the
/// last tensor of each name.
fn check_duplicates(path: &Path, header: &[u8]) -> Result<(), CheckpointError> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a JSON object of tensors")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut names = HashSet::new();
            let mut duplicate = None;
            while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if name.len() > 1024 {
                    return Err(A::Error::custom("a tensor name is longer than 1024 bytes"));
                }
                if let Some(name) = names.replace(name) {
                    duplicate = Some(name);
                }
            }
            Ok(duplicate)
        }
    }
    let duplicate = serde_json::Deserializer::from_slice(header)
        .deserialize_map(Names)
        .map_err(|error| CheckpointError::Header { path: path.to_owned(), reason: error.to_string() })?;
    match duplicate {
        None => Ok(()),
        Some(name) => Err(CheckpointError::Duplicate { path: path.to_owned(), name }),
    }
}
