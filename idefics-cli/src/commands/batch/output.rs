//! Where the rows of a batch go.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::rows::Name;
use crate::failure::Failure;
use crate::input::STANDARD;

/// Links that are followed to the output at most.
const MAX_LINKS: usize = 40;

/// A row that was answered.
#[derive(Debug, Clone)]
pub(super) struct Done {
    /// Position in the input, from 0.
    pub(super) index: usize,
    /// Digest of what was asked.
    pub(super) input: String,
    /// What the row is known by.
    pub(super) name: Name,
    /// The line of the output.
    pub(super) line: String,
    /// Whether the row could not be answered.
    pub(super) is_error: bool,
}

/// What came out in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) n_rows: usize,
    pub(super) n_failed: usize,
    /// Whether the output was complete before.
    pub(super) is_old: bool,
}

/// The open output.
pub(super) enum Output {
    /// A pipe, a terminal or another device.
    Stream(Stream),
    /// A file that appears when it is complete.
    File(Journal),
}

impl Output {
    /// Takes the output for this run; also the digests of the rows that were answered before, by their names.
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

    /// Keeps rows that were answered.
    pub(super) fn keep(&mut self, rows: &[Done]) -> Result<(), Failure> {
        match self {
            Self::Stream(stream) => stream.keep(rows),
            Self::File(journal) => journal.keep(rows),
        }
    }

    /// Keeps a row that was answered before.
    pub(super) fn keep_old(&mut self, index: usize, name: &Name) {
        if let Self::File(journal) = self {
            journal.keep_old(index, name);
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

/// What `--output` names.
pub(super) enum Target {
    Stream(Stream),
    File(PathBuf),
}

impl Target {
    /// Standard output for `-`, what a link points to, and the path itself else. Pipes and devices are written to as they
    /// are: nothing is put beside them.
    pub(super) fn of(output: &Path) -> Result<Self, Failure> {
        let mut path = output.to_owned();
        for _ in 0..MAX_LINKS {
            // These are links to whatever is open, be it a file that others write too.
            if [STANDARD, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path.as_os_str() == *name) {
                return Ok(Self::Stream(Stream::new("standard output".to_owned(), Box::new(io::stdout()))));
            }
            let Ok(target) = fs::read_link(&path) else { break };
            let next = path.parent().unwrap_or(Path::new("")).join(target);
            // A link to an open pipe (`/dev/fd/63`) has no name that could be followed.
            if fs::symlink_metadata(&next).is_err() && fs::metadata(&path).is_ok() {
                break;
            }
            path = next;
        }
        let failed = |error| Failure::io(output, &error);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                Err(Failure::file_system(format!("{}: is a folder, expected a file", output.display())))
            }
            Ok(found) if !found.is_file() => {
                let device = OpenOptions::new().append(true).open(&path).map_err(failed)?;
                Ok(Self::Stream(Stream::new(output.display().to_string(), Box::new(device))))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(Self::File(path)),
        }
    }

    /// The file, if it is one.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Stream(_) => None,
        }
    }
}

/// Writes rows in the order of the input, as soon as those before them are there.
pub(super) struct Stream {
    name: String,
    writer: Box<dyn Write>,
    waiting: BTreeMap<usize, String>,
    summary: Summary,
}

impl Stream {
    fn new(name: String, writer: Box<dyn Write>) -> Self {
        let summary = Summary { n_rows: 0, n_failed: 0, is_old: false };
        Self { name, writer, waiting: BTreeMap::new(), summary }
    }

    fn keep(&mut self, rows: &[Done]) -> Result<(), Failure> {
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
        written.map_err(|error| Failure::of_io(&self.name, &error))
    }
}
