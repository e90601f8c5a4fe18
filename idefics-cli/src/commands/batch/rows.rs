//! The rows of a batch's input.

use std::collections::HashSet;
use std::path::Path;

use idefics_generate::processor::Sample;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::failure::Failure;

/// Bytes of a line at most.
const MAX_LINE: usize = 64 << 20;

/// How a line of the output begins: `{"id": …}` or `{"line": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Name {
    /// The row's own, a string or a number.
    Id(Value),
    /// Where the row is in the input, from 1, if it has no id or one that is neither.
    Line(usize),
}

impl Name {
    /// The name with which a line of the output begins.
    pub(super) fn of_line(line: &Value) -> Option<Self> {
        let id = line.get("id").map(|id| Self::Id(id.clone()));
        id.or_else(|| line.get("line")?.as_u64()?.try_into().ok().map(Self::Line))
    }
}

/// A line of the input.
#[derive(Debug)]
pub(super) struct InputRow {
    /// What its answer is known by.
    pub(super) name: Name,
    /// Digest of the line, and of the size and time of the files that it names.
    pub(super) digest: String,
    /// The sample, or what is wrong with the line.
    pub(super) sample: Result<Sample, String>,
}

impl InputRow {
    /// About how many tokens the sample has: what rows are grouped by.
    pub(super) fn length(&self, tokens_per_image: usize) -> usize {
        let Ok(sample) = &self.sample else { return 0 };
        sample.text_bytes() / 4 + tokens_per_image * sample.images().len()
    }
}

/// Reads the rows; image paths are relative to the file. Also the digest of the whole input.
///
/// Ids that are there twice are refused before any work; a line that is no sample becomes a row with its error.
pub(super) fn read(path: &Path) -> Result<(Vec<InputRow>, String), Failure> {
    let text = std::fs::read(path).map_err(|error| Failure::file_system(format!("{}: {error}", path.display())))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    let mut digest = Sha256::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let row = read_line(index + 1, line, folder);
        if let Name::Id(id) = &row.name
            && !seen.insert(id.clone())
        {
            let message = format!("{}: line {}: the id {id} was there before", path.display(), index + 1);
            return Err(Failure::input(message));
        }
        digest.update(row.digest.as_bytes());
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Failure::input(format!("{}: no line holds a sample", path.display())));
    }
    Ok((rows, hex(digest)))
}

fn read_line(number: usize, line: &[u8], folder: &Path) -> InputRow {
    let mut digest = Sha256::new();
    digest.update(line);
    let at = |reason: &dyn std::fmt::Display| format!("line {number}: {reason}");
    let value = match line.len() > MAX_LINE {
        true => Err(at(&format!("{} bytes, at most {MAX_LINE} are read", line.len()))),
        false => serde_json::from_slice::<Value>(line).map_err(|error| at(&error)),
    };
    let mut name = Name::Line(number);
    let sample = value.and_then(|mut value| {
        match value.as_object_mut().and_then(|object| object.shift_remove("id")) {
            Some(id) if id.is_string() || id.is_number() => name = Name::Id(id),
            Some(_) => return Err(at(&"`id` is neither a string nor a number")),
            None => {}
        }
        let mut sample = Sample::deserialize(value).map_err(|error| at(&error))?;
        sample.resolve_paths(folder);
        Ok(sample)
    });
    for image in sample.iter().flat_map(Sample::images) {
        if let Ok(file) = std::fs::metadata(image.to_string()) {
            digest.update(file.len().to_le_bytes());
            digest.update(format!("{:?}", file.modified().ok()));
        }
    }
    InputRow { name, digest: hex(digest), sample }
}

/// A digest in hexadecimal digits.
pub(super) fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
