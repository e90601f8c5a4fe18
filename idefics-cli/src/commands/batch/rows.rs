//! Reads the input rows of a batch.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;

use idefics_generate::processor::{Sample, VideoSource};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::commands;
use crate::failure::Failure;
use crate::input::{self, Input};

/// Maximum length of a line, in bytes.
const MAX_LINE: usize = 64 << 20;

/// Keys that belong to samples. They are not copied to the output, even if the sample is invalid and they have not been
/// read.
const SAMPLE_KEYS: [&str; 6] = ["text", "images", "videos", "messages", "add_generation_prompt", "prompt"];

/// Keys that the program writes to output rows. User keys with these names are dropped.
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

/// Number of frames that are assumed per video when the length of a row is estimated. SmolVLM2 samples at most this
/// many.
const FRAMES_PER_VIDEO: usize = 64;

/// Identifies a row across runs. The output line starts with it: `{"id": …` or `{"line": …`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// The row's id as JSON, a string or a number. Numbers are kept as written: they may have more digits than any
    /// number type can hold.
    Id(String),
    /// The line number of a row without a valid id, counted from 1.
    Line(usize),
}

impl Name {
    /// Returns the name for an id, or `None` if the id is neither a string nor a number.
    fn from_id(id: &RawValue) -> Option<Self> {
        match id.get().as_bytes().first()? {
            b'"' => serde_json::from_str::<Value>(id.get()).ok().map(|id| Self::Id(id.to_string())),
            b'-' | b'0'..=b'9' => Some(Self::Id(id.get().to_owned())),
            _ => None,
        }
    }

    /// Parses the name of an output line. Also returns whether the row failed. Returns `None` if the line has no name.
    pub(super) fn from_line(line: &str) -> Option<(Self, bool)> {
        #[derive(Deserialize)]
        struct Line<'l> {
            #[serde(borrow)]
            id: Option<&'l RawValue>,
            line: Option<usize>,
            error: Option<IgnoredAny>,
        }
        let Line { id, line, error } = serde_json::from_str(line).ok()?;
        let name = id.and_then(Self::from_id).or(line.map(Self::Line))?;
        Some((name, error.is_some()))
    }

    /// Formats an output line: the name, followed by the keys and JSON values of `rest`.
    pub(super) fn line<'a>(&self, rest: impl IntoIterator<Item = (&'a str, String)>) -> String {
        let mut line = match self {
            Self::Id(id) => format!("{{\"id\":{id}"),
            Self::Line(line) => format!("{{\"line\":{line}"),
        };
        for (key, json) in rest {
            line += &format!(",{}:{json}", Value::from(key));
        }
        line + "}"
    }
}

/// A non-blank line of the input.
#[derive(Debug)]
pub(super) struct InputRow {
    /// Position among the rows, from 0.
    pub(super) index: usize,
    pub(super) name: Name,
    /// Digest of the line, and of the size and modification time of the image and video files that it names.
    pub(super) digest: String,
    /// The user's own keys, which are copied to the output. Their values are kept as JSON text, because numbers may
    /// have more digits than any number type can hold.
    pub(super) own: Vec<(String, String)>,
    /// The sample, or an error message if the line is invalid.
    pub(super) sample: Result<Sample, String>,
}

impl InputRow {
    /// Estimates the number of tokens of the sample, for grouping. It assumes one token per four bytes of text, and
    /// `tokens_per_image` tokens per image or video frame.
    pub(super) fn length(&self, tokens_per_image: usize) -> usize {
        let Ok(sample) = &self.sample else { return 0 };
        sample.text_bytes() / 4 + tokens_per_image * (sample.images().len() + FRAMES_PER_VIDEO * sample.videos().len())
    }
}

/// Reads rows one by one. A line that is not a sample, or that repeats an earlier id, becomes a row with an error. The
/// name of a row with a repeated id is its line number.
pub(super) struct Rows<'i, R> {
    input: &'i Input,
    reader: R,
    line: Vec<u8>,
    n_lines: usize,
    n_rows: usize,
    /// Line number of each id.
    ids: HashMap<String, usize>,
    /// User keys that were already warned about.
    warned: HashSet<String>,
    is_over: bool,
}

impl<'i, R: BufRead> Rows<'i, R> {
    /// Creates a reader of the rows of `input`, whose text comes from `reader`.
    pub(super) fn new(input: &'i Input, reader: R) -> Self {
        let (ids, warned) = (HashMap::new(), HashSet::new());
        Self { input, reader, line: Vec::new(), n_lines: 0, n_rows: 0, ids, warned, is_over: false }
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
                line =
                    input::strip_byte_order_mark(line).map_err(|reason| Failure::input(format!("{name}: {reason}")))?;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let mut row = self.parse(line.trim_ascii(), len);
            if let Name::Id(id) = &row.name {
                let n_line = self.n_lines;
                let first = *self.ids.entry(id.clone()).or_insert(n_line);
                if first != n_line {
                    let id = shorten(id);
                    row.sample =
                        Err(format!("line {n_line}: the id {id} is already used on line {first}; ids must be unique"));
                    row.name = Name::Line(n_line);
                }
            }
            for (key, _) in row.own.iter().filter(|(key, _)| ROW_KEYS.contains(&key.as_str())) {
                if self.warned.insert(key.clone()) {
                    say!("warning: `{key}` of the samples is dropped, because output rows have their own `{key}`");
                }
            }
            if let Ok(sample) = &row.sample {
                commands::warn_about_parts(sample);
                self.warn_about_keys(sample, &row.own);
            }
            row.own.retain(|(key, _)| !ROW_KEYS.contains(&key.as_str()));
            self.n_rows += 1;
            return Ok(Some(row));
        }
    }

    /// Prints a warning about keys such as `image` in a sample without images, once for each key. They are probably
    /// meant as keys of the sample.
    fn warn_about_keys(&mut self, sample: &Sample, own: &[(String, String)]) {
        if !sample.images().is_empty() || !sample.videos().is_empty() {
            return;
        }
        for (key, meant) in own.iter().filter_map(|(key, _)| Some((key, Sample::similar_key(key)?))) {
            if self.warned.insert(key.clone()) {
                let n_line = self.n_lines;
                say!("warning: line {n_line}: `{key}` is only copied to the output; write `{meant}` for the model");
            }
        }
    }

    /// Parses a line of `len` bytes. If the line is longer than [`MAX_LINE`], `line` holds only the beginning.
    fn parse(&self, line: &[u8], len: usize) -> InputRow {
        let mut digest = Sha256::new();
        digest.update(line);
        let at = |reason: &dyn std::fmt::Display| format!("line {}: {reason}", self.n_lines);
        let value = match len > MAX_LINE {
            true => Err(at(&format!("the line has {len} bytes; at most {MAX_LINE} are allowed"))),
            false => serde_json::from_slice::<Value>(line).map_err(|error| at(&format!("not valid JSON: {error}"))),
        };
        let mut name = Name::Line(self.n_lines);
        let mut own = Vec::new();
        let sample = value.and_then(|mut value| {
            let Some(object) = value.as_object_mut() else {
                return Sample::try_from(value).map_err(|error| at(&error));
            };
            let written: HashMap<String, &RawValue> = serde_json::from_slice(line).map_err(|error| at(&error))?;
            object.shift_remove("id");
            let taken = Sample::take_from(object);
            let keys = std::mem::take(object).into_iter().map(|(key, _)| key);
            own = keys
                .filter(|key| !SAMPLE_KEYS.contains(&key.as_str()))
                // Many programs treat a carriage return as a line ending. Here it can only occur between JSON tokens,
                // because strings contain it in escaped form.
                .filter_map(|key| written.get(&key).map(|json| json.get().replace('\r', " ")).map(|json| (key, json)))
                .collect();
            // Tools that export tables write null for a missing id.
            if let Some(id) = written.get("id").filter(|id| id.get() != "null") {
                name = Name::from_id(id).ok_or_else(|| at(&"`id` must be a string or a number"))?;
            }
            let mut sample = taken.map_err(|error| at(&error))?;
            sample.resolve_paths(self.input.folder());
            Ok(sample)
        });
        let images =
            sample.iter().flat_map(Sample::images).filter_map(|image| image.file().map(|path| path.into_owned()));
        let videos = sample.iter().flat_map(Sample::videos).flat_map(VideoSource::files);
        for file in images.chain(videos).filter_map(|path| std::fs::metadata(path).ok()) {
            digest.update(file.len().to_le_bytes());
            digest.update(format!("{:?}", file.modified().ok()));
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

/// Shortens an id for an error message.
fn shorten(id: &str) -> String {
    const MAX_CHARS: usize = 80;
    match id.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &id[..end]),
        None => id.to_owned(),
    }
}

/// Returns the first 16 bytes of a digest as hexadecimal digits.
pub(super) fn hex(digest: Sha256) -> String {
    digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
