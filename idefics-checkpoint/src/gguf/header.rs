//! Parses the header of a GGUF file: the metadata and the descriptions of the tensors.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use idefics_kernels::formats::GgufType;

use super::cursor::Cursor;
use super::error::shorten;
use super::value::{Field, Metadata};
use super::{GgufError, GgufFault};

/// Maximum number of keys in a file; real files have about forty.
const MAX_KEYS: u64 = 1 << 16;
/// Maximum number of tensors in a file; the largest public checkpoints have a few thousand.
const MAX_TENSORS: u64 = 100_000;
const MAX_KEY_BYTES: usize = 65_535;
/// Maximum length of a tensor's name in bytes: `GGML_MAX_NAME`.
const MAX_NAME_BYTES: usize = 64;
/// Maximum number of dimensions: `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: usize = 1 << 20;
const DEFAULT_ALIGNMENT: usize = 32;

/// The header of a GGUF file: its metadata, and the descriptions of its tensors.
#[derive(Debug, Clone)]
pub struct GgufHeader {
    fields: BTreeMap<String, Field>,
    tensors: Vec<GgufTensor>,
}

/// The description of a tensor in the header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name of the tensor in the file.
    pub name: String,
    /// Dimensions, the contiguous one first: a matrix `[d_out, d_in]` of PyTorch is `[d_in, d_out]` here.
    pub dims: Vec<usize>,
    /// Type in which the rows are stored.
    pub kind: GgufType,
    /// Byte range of the tensor in the file.
    pub range: Range<usize>,
}

impl GgufHeader {
    /// Returns the tensors in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// Returns the metadata. `file` must be the content that was parsed, because values are read from it. `path` is
    /// used in error messages.
    pub fn metadata<'a>(&'a self, path: &'a Path, file: &'a [u8]) -> Metadata<'a> {
        Metadata { path, fields: &self.fields, file }
    }
}

/// Parses the keys and tensor descriptions of a file. `file` is its content. Reads no weights, and allocates only a
/// small multiple of the size of the descriptions.
///
/// # Errors
/// [`GgufError`], which names `path` and the byte at fault.
pub fn parse(path: &Path, file: &[u8]) -> Result<GgufHeader, GgufError> {
    read(file).map_err(|fault| GgufError::new(path, fault))
}

fn read(file: &[u8]) -> Result<GgufHeader, GgufFault> {
    let mut cursor = Cursor::new(file);
    let magic = cursor.take(4.min(file.len() as u64), "the magic number")?;
    if magic != b"GGUF" {
        return Err(GgufFault::Magic { found: magic.to_vec() });
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        version if version != 0 && version.trailing_zeros() >= 16 => return Err(GgufFault::BigEndian),
        found => return Err(GgufFault::Version { found }),
    }
    let (n_tensors, n_keys) = counts(&mut cursor)?;

    let mut fields = BTreeMap::new();
    for _ in 0..n_keys {
        let offset = cursor.at as u64;
        let key = cursor.name("a key", MAX_KEY_BYTES)?;
        let field = Field::read(&mut cursor, key)?;
        if fields.insert(key.to_owned(), field).is_some() {
            return Err(GgufFault::Duplicate { what: "key", name: shorten(key), offset });
        }
    }

    let mut infos = Vec::with_capacity(n_tensors as usize);
    let mut names = HashSet::with_capacity(n_tensors as usize);
    for _ in 0..n_tensors {
        let info = Info::read(&mut cursor)?;
        if !names.insert(info.name) {
            return Err(GgufFault::Duplicate { what: "tensor", name: info.name.to_owned(), offset: info.at });
        }
        infos.push(info);
    }

    let alignment = alignment(&fields, file)?;
    let data_start = cursor.at.next_multiple_of(alignment);
    let placed = infos.into_iter().map(|info| info.place(data_start, alignment, file.len()));
    let tensors = placed.collect::<Result<Vec<GgufTensor>, GgufFault>>()?;
    check_overlaps(&tensors)?;
    Ok(GgufHeader { fields, tensors })
}

/// Reads the numbers of tensors and keys, and checks them against the size of the file.
fn counts(cursor: &mut Cursor<'_>) -> Result<(u64, u64), GgufFault> {
    let at = cursor.at as u64;
    let n_tensors = cursor.count("the number of tensors", 24)?;
    let n_keys = cursor.count("the number of keys", 13)?;
    for (what, offset, found, limit) in
        [("the number of tensors", at, n_tensors, MAX_TENSORS), ("the number of keys", at + 8, n_keys, MAX_KEYS)]
    {
        if found > limit {
            let (what, found, expected) = (what.to_owned(), found.to_string(), format!("at most {limit}"));
            return Err(GgufFault::Value { what, offset, found, expected });
        }
    }
    Ok((n_tensors, n_keys))
}

fn alignment(fields: &BTreeMap<String, Field>, file: &[u8]) -> Result<usize, GgufFault> {
    let metadata = Metadata { path: Path::new(""), fields, file };
    let alignment = metadata.number("general.alignment").map_err(|error| error.fault)?.unwrap_or(DEFAULT_ALIGNMENT);
    match alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT {
        true => Ok(alignment),
        false => Err(GgufFault::Key {
            key: "general.alignment".to_owned(),
            found: alignment.to_string(),
            expected: format!("a power of two, at most {MAX_ALIGNMENT}"),
        }),
    }
}

/// The description of a tensor, before its byte range is computed.
struct Info<'a> {
    /// Offset of the description in the file.
    at: u64,
    name: &'a str,
    dims: Vec<usize>,
    kind: GgufType,
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, GgufFault> {
        let at = cursor.at as u64;
        let name = cursor.name("the name of a tensor", MAX_NAME_BYTES)?;
        let what = |part: &str| format!("{part} of tensor `{name}`");
        let offset = cursor.at as u64;
        let n_dims = cursor.u32(&what("the number of dimensions"))?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            let (what, found) = (what("the number of dimensions"), n_dims.to_string());
            return Err(GgufFault::Value { what, offset, found, expected: format!("1 to {MAX_DIMS}") });
        }
        let mut dims = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let offset = cursor.at as u64;
            let dim = cursor.u64(&what("a dimension"))?;
            match usize::try_from(dim).ok().filter(|dim| (1..=1 << 40).contains(dim)) {
                Some(dim) => dims.push(dim),
                None => {
                    let (what, found) = (what("a dimension"), dim.to_string());
                    return Err(GgufFault::Value { what, offset, found, expected: "1 to 2^40".to_owned() });
                }
            }
        }
        let id = cursor.u32(&what("the type"))?;
        let kind = GgufType::from_id(id).ok_or_else(|| GgufFault::TensorType {
            name: name.to_owned(),
            offset: at,
            found: other_type(id),
        })?;
        let offset = cursor.u64(&what("the offset"))?;
        Ok(Self { at, name, dims, kind, offset })
    }

    /// Computes the byte range of the tensor, and checks that it lies within a file of `length` bytes.
    fn place(self, data_start: usize, alignment: usize, length: usize) -> Result<GgufTensor, GgufFault> {
        let Self { at, name, dims, kind, offset } = self;
        let bad = |part: &str, found: String, expected: String| GgufFault::Value {
            what: format!("{part} of tensor `{name}`"),
            offset: at,
            found,
            expected,
        };
        let row_bytes = kind.row_bytes(dims[0]).ok_or_else(|| {
            bad(
                "the first dimension",
                dims[0].to_string(),
                format!("a multiple of the block length {}", kind.block_len()),
            )
        })?;
        let bytes = dims[1..].iter().try_fold(row_bytes, |bytes, dim| bytes.checked_mul(*dim));
        let bytes =
            bytes.ok_or_else(|| bad("the size", format!("{dims:?}"), "a size that fits into memory".to_owned()))?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(bad("the offset", offset.to_string(), format!("a multiple of {alignment}")));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
        match start.and_then(|start| Some(start..start.checked_add(bytes)?)) {
            Some(range) if range.end <= length => Ok(GgufTensor { name: name.to_owned(), dims, kind, range }),
            range => {
                let start = range.map_or(u64::MAX, |range| range.start as u64);
                let (what, left) = (format!("tensor `{name}`"), (length as u64).saturating_sub(start));
                Err(GgufFault::Truncated { what, offset: start, needed: bytes as u64, left })
            }
        }
    }
}

fn check_overlaps(tensors: &[GgufTensor]) -> Result<(), GgufFault> {
    let mut in_order: Vec<&GgufTensor> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| tensor.range.start);
    match in_order.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
        None => Ok(()),
        Some(pair) => Err(GgufFault::Overlap {
            first: pair[0].name.clone(),
            second: pair[1].name.clone(),
            offset: pair[1].range.start as u64,
        }),
    }
}

/// Returns the name of an unsupported type, or its number. Source: `ggml_type` of ggml.
fn other_type(id: u32) -> String {
    let name = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}
