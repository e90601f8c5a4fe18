//! The rows of a batch's input.

use std::collections::HashSet;
use std::io::BufRead;

use idefics_generate::processor::Sample;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::input::{self, Input};

/// Longest line that is read, in bytes.
const MAX_LINE: usize = 64 << 20;

/// Keys that are no user's own, though a row with an error may have them left.
const SAMPLE_KEYS: [&str; 5] = ["text", "images", "messages", "add_generation_prompt", "prompt"];

/// Keys that a row of the output has itself. Those of the user's own do not replace them.
const ROW_KEYS: [&str; 13] = [
    "id",
    "line",
    "text",
    "prompt",
    "token_ids",
    "finish_reason",
    "usage",
    "replay_refusal",
    "score",
    "logprobs",
    "prompt_logprobs",
    "answers",
    "error",
];

/// What a row is known by, and how its line of the output begins: `{"id": …}` or `{"line": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Name {
    /// The row's own id, a string or a number.
    Id(Value),
    /// The number of the row's line, from 1, if it has no such id.
    Line(usize),
}

impl Name {
    /// The name with which a line of the output begins.
    pub(super) fn of_line(line: &Value) -> Option<Self> {
        let id = line.get("id").map(|id| Self::Id(id.clone()));
        id.or_else(|| line.get("line")?.as_u64()?.try_into().ok().map(Self::Line))
    }
}

/// A line of the input that is not blank.
#[derive(Debug)]
pub(super) struct InputRow {
    /// Position among the rows, from 0.
    pub(super) index: usize,
    pub(super) name: Name,
    /// Digest of the line, and of the size and time of the files that it names.
    pub(super) digest: String,
    /// The user's own keys, which come out again.
    pub(super) own: Map<String, Value>,
    /// The sample, or what is wrong with the line.
    pub(super) sample: Result<Sample, String>,
}

impl InputRow {
    /// About how many tokens the sample has if an image has `tokens_per_image`: what rows are grouped by.
    pub(super) fn length(&self, tokens_per_image: usize) -> usize {
        let Ok(sample) = &self.sample else { return 0 };
        sample.text_bytes() / 4 + tokens_per_image * sample.images().len()
    }
}

/// Reads rows one after the other. A line that is no sample is a row with its error; an id that came before is an error of
/// the whole input, after which there are no more rows.
pub(super) struct Rows<'i, R> {
    input: &'i Input,
    reader: R,
    line: Vec<u8>,
    n_lines: usize,
    n_rows: usize,
    ids: HashSet<Value>,
    /// Own keys that do not come out again, each named once.
    dropped: HashSet<String>,
    is_over: bool,
}

impl<'i, R: BufRead> Rows<'i, R> {
    /// Reads the rows of `input` from `reader`.
    pub(super) fn new(input: &'i Input, reader: R) -> Self {
        let (ids, dropped) = (HashSet::new(), HashSet::new());
        Self { input, reader, line: Vec::new(), n_lines: 0, n_rows: 0, ids, dropped, is_over: false }
    }

    fn read(&mut self) -> Result<Option<InputRow>, Failure> {
        loop {
            let len = input::read_line(&mut self.reader, MAX_LINE, &mut self.line);
            let len = len.map_err(|error| self.input.failed(&error))?;
            if len == 0 {
                return Ok(None);
            }
            self.n_lines += 1;
            let mut line = self.line.as_slice();
            if self.n_lines == 1 {
                let name = self.input.name();
                line = input::without_mark(line).map_err(|reason| Failure::input(format!("{name}: {reason}")))?;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let row = self.parse(line.trim_ascii(), len);
            if let Name::Id(id) = &row.name
                && !self.ids.insert(id.clone())
            {
                let message = format!("{}: line {}: the id {id} was there before", self.input.name(), self.n_lines);
                return Err(Failure::input(message));
            }
            for key in row.own.keys().filter(|key| ROW_KEYS.contains(&key.as_str())) {
                if self.dropped.insert(key.clone()) {
                    say!("warning: `{key}` of the samples is left out: rows of the output have a `{key}` of their own");
                }
            }
            let own = row.own.into_iter().filter(|(key, _)| !ROW_KEYS.contains(&key.as_str())).collect();
            self.n_rows += 1;
            return Ok(Some(InputRow { own, ..row }));
        }
    }

    /// Parses a line of `len` bytes, of which `line` may be the beginning.
    fn parse(&self, line: &[u8], len: usize) -> InputRow {
        let mut digest = Sha256::new();
        digest.update(line);
        let at = |reason: &dyn std::fmt::Display| format!("line {}: {reason}", self.n_lines);
        let value = match len > MAX_LINE {
            true => Err(at(&format!("{len} bytes; at most {MAX_LINE} are read"))),
            false => serde_json::from_slice::<Value>(line).map_err(|error| at(&format!("not valid JSON: {error}"))),
        };
        let mut name = Name::Line(self.n_lines);
        let mut own = Map::new();
        let sample = value.and_then(|mut value| {
            let Some(object) = value.as_object_mut() else {
                return Sample::try_from(value).map_err(|error| at(&error));
            };
            let id = object.shift_remove("id");
            let taken = Sample::take_from(object);
            own = std::mem::take(object);
            own.retain(|key, _| !SAMPLE_KEYS.contains(&key.as_str()));
            match id {
                Some(id) if id.is_string() || id.is_number() => name = Name::Id(id),
                Some(_) => return Err(at(&"`id` is neither a string nor a number")),
                None => {}
            }
            let mut sample = taken.map_err(|error| at(&error))?;
            sample.resolve_paths(self.input.folder());
            Ok(sample)
        });
        for image in sample.iter().flat_map(Sample::images) {
            if let Some(path) = image.file()
                && let Ok(file) = std::fs::metadata(path)
            {
                digest.update(file.len().to_le_bytes());
                digest.update(format!("{:?}", file.modified().ok()));
            }
        }
        InputRow { index: self.n_rows, name, digest: hex(digest), own, sample }
    }
}

impl<R: BufRead> Iterator for Rows<'_, R> {
    type Item = Result<InputRow, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let row = self.read().transpose();
        self.is_over = !matches!(row, Some(Ok(_)));
        row
    }
}

/// The first half of a digest in hexadecimal digits.
pub(super) fn hex(digest: Sha256) -> String {
    digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
