//! The output of a batch: a file or a stream.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::rows::Name;
use crate::failure::Failure;
use crate::input::STANDARD;
use crate::output::check_parent;

/// Maximum number of symbolic links to follow to the output.
const MAX_LINKS: usize = 40;

/// An answered row.
#[derive(Debug, Clone)]
pub(super) struct Done {
    /// Position in the input, from 0.
    pub(super) index: usize,
    /// Digest of the row's input.
    pub(super) input: String,
    pub(super) name: Name,
    /// The output line, without line ending.
    pub(super) line: String,
    /// Whether the row failed.
    pub(super) is_error: bool,
}

/// Totals of a finished batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) n_rows: usize,
    pub(super) n_failed: usize,
    /// Whether the output was complete before this run.
    pub(super) was_complete: bool,
}

/// The open output.
pub(super) enum Output {
    /// A pipe, a terminal or another device.
    Stream(Stream),
    /// A file, written when all rows are answered.
    File(Journal),
}

impl Output {
    /// Opens the output. Also returns the digests of the rows that earlier runs answered, by name.
    pub(super) fn open(target: Target, run: &str, restart: bool) -> Result<(Self, HashMap<Name, String>), Failure> {
        match target {
            Target::Stream(stream) => Ok((Self::Stream(stream), HashMap::new())),
            Target::File(path) => {
                let journal = Journal::open(&path, run, restart)?;
                let done = journal.done();
                Ok((Self::File(journal), done))
            }
        }
    }

    /// Saves answered rows.
    pub(super) fn save(&mut self, rows: &[Done]) -> Result<(), Failure> {
        match self {
            Self::Stream(stream) => stream.save(rows),
            Self::File(journal) => journal.save(rows),
        }
    }

    /// Takes over the answer of an earlier run for a row.
    pub(super) fn reuse(&mut self, index: usize, name: &Name) {
        if let Self::File(journal) = self {
            journal.reuse(index, name);
        }
    }

    /// Completes the output.
    pub(super) fn finish(self) -> Result<Summary, Failure> {
        match self {
            Self::Stream(stream) => Ok(stream.summary),
            Self::File(journal) => journal.finish(),
        }
    }
}

/// The target that `--output` names.
pub(super) enum Target {
    Stream(Stream),
    File(PathBuf),
}

impl Target {
    /// Opens the target of a path: standard output for `-`, the target of a symbolic link, or else the path itself.
    /// Pipes and devices become streams, for which no journal or lock file is created.
    pub(super) fn open(output: &Path) -> Result<Self, Failure> {
        let mut path = output.to_owned();
        for _ in 0..MAX_LINKS {
            // These names mean the open standard output, which may be a file that other processes write to as well.
            if [STANDARD, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path.as_os_str() == *name) {
                return Ok(Self::Stream(Stream::new("standard output".to_owned(), Box::new(io::stdout()))));
            }
            let Ok(target) = fs::read_link(&path) else { break };
            let next = path.parent().unwrap_or(Path::new("")).join(target);
            // A link to an open pipe (`/dev/fd/63`) has a target that is not a path.
            if fs::symlink_metadata(&next).is_err() && fs::metadata(&path).is_ok() {
                break;
            }
            path = next;
        }
        let failed = |error| Failure::io(output, &error);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                Err(Failure::file_system(format!("{}: is a folder; expected a file", output.display())))
            }
            Ok(found) if !found.is_file() => {
                let device = OpenOptions::new().append(true).open(&path).map_err(failed)?;
                Ok(Self::Stream(Stream::new(output.display().to_string(), Box::new(device))))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => {
                check_parent(&path)?;
                Ok(Self::File(path))
            }
        }
    }

    /// Returns the path, if the target is a file.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Stream(_) => None,
        }
    }
}

/// Writes rows in the order of the input, each as soon as all earlier rows are answered.
pub(super) struct Stream {
    /// Name for error messages.
    name: String,
    writer: Box<dyn Write>,
    /// Answered rows that wait for earlier rows, by position in the input.
    waiting: BTreeMap<usize, String>,
    summary: Summary,
}

impl Stream {
    fn new(name: String, writer: Box<dyn Write>) -> Self {
        let summary = Summary { n_rows: 0, n_failed: 0, was_complete: false };
        Self { name, writer, waiting: BTreeMap::new(), summary }
    }

    fn save(&mut self, rows: &[Done]) -> Result<(), Failure> {
        for done in rows {
            self.summary.n_failed += usize::from(done.is_error);
            self.waiting.insert(done.index, done.line.clone());
        }
        let mut lines = String::new();
        while let Some(row) = self.waiting.remove(&self.summary.n_rows) {
            lines.push_str(&row);
            lines.push('\n');
            self.summary.n_rows += 1;
        }
        let written = self.writer.write_all(lines.as_bytes()).and_then(|()| self.writer.flush());
        written.map_err(|error| Failure::io_named(&self.name, &error))
    }
}
