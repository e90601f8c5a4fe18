//! The journal of a batch, from which an interrupted run is resumed.
//!
//! The journal `OUT.part` has a line for each answered row, in the order of the answers. If a row has several lines,
//! only the last one counts. The first line of the journal describes the run:
//! ```text
//! CHECKSUM run DIGEST
//! CHECKSUM DIGEST {"id": 1, "text": "…"}
//! ```
//! The digest in the first line covers everything that all rows depend on (model and options). The digest of a row
//! covers the row's input. The output line follows this digest. A line is durable once [`Journal::save`] returns. An
//! incomplete last line, left by an interrupted run, is cut off by the next run.
//!
//! `OUT.lock` is locked while a run writes the output. Afterwards it holds the digests of the run, its rows and the
//! output.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use idefics_checkpoint::write_atomically;
use idefics_generate::Error;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::journal_line::{Place, text_of, with_checksum};
use super::output::{Done, Summary};
use super::rows::{Name, hex};
use crate::failure::Failure;

/// Maximum length of the first line of a journal, in bytes.
const MAX_FIRST_LINE: usize = 256;

/// The journal, lock file and path of one output.
#[derive(Debug)]
pub(super) struct Journal {
    output: PathBuf,
    part: PathBuf,
    file: File,
    lock: File,
    /// Digest of everything that all rows depend on.
    run: String,
    /// Length of the journal in bytes.
    len: u64,
    /// Lines of the rows that earlier runs answered, by name.
    old: HashMap<Name, Place>,
    /// Line of each row, by the row's position in the input; `None` until the row is answered.
    places: Vec<Option<Place>>,
    /// Number of rows in the finished output that this run started from, if there was one.
    n_finished: Option<usize>,
    /// Number of rows that this run has answered.
    n_new: usize,
}

/// The contents of the lock file of a finished output.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    /// Digest of everything that all rows depend on.
    run: String,
    /// Digest of the output file.
    output: String,
    /// Digests of the inputs, one per line of the output.
    rows: Vec<String>,
}

impl Journal {
    /// Locks the output for this run and reads the rows that earlier runs answered. `run` is the digest of everything
    /// that all rows depend on. With `restart`, earlier answers are discarded.
    ///
    /// # Errors
    /// If another run holds the lock, or if the journal or the output is from a different run or another program.
    pub(super) fn open(output: &Path, run: &str, restart: bool) -> Result<Self, Failure> {
        let part = with_suffix(output, ".part");
        let lock = open(&with_suffix(output, ".lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Failure::file_system(format!("{}: another run is writing this output; wait for it", output.display()))
            }
            TryLockError::Error(error) => Failure::io(output, &error),
        })?;
        if restart {
            remove(&part)?;
        }
        let file = open(&part)?;
        let mut journal = Self {
            output: output.to_owned(),
            part,
            file,
            run: run.to_owned(),
            len: 0,
            old: HashMap::new(),
            places: Vec::new(),
            n_finished: None,
            n_new: 0,
            lock,
        };
        let found = journal.read()?;
        if found.is_some_and(|found| found != run) {
            let message = "was started with another model or other options; give --restart to start over";
            return Err(Failure::usage(format!("{}: {message}", journal.part.display())));
        }
        let len = journal.len;
        journal.io(|file| file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len))))?;
        if len == 0 {
            let finished = match output.exists() && !restart {
                true => Some(journal.read_finished().inspect_err(|_| {
                    let _ = remove(&journal.part); // it is empty
                })?),
                false => None,
            };
            journal.append(&[format!("run {run}")])?;
            if let Some((rows, digests)) = finished {
                journal.n_finished = Some(digests.len());
                journal.import_rows(rows, digests)?;
            }
        }
        Ok(journal)
    }

    /// Reads the complete lines and returns the digest of the run that wrote them. A journal without rows counts as
    /// empty.
    fn read(&mut self) -> Result<Option<String>, Failure> {
        let failed = |error| Failure::io(&self.part, &error);
        let mut reader = BufReader::new(&self.file);
        let (mut run, mut len, mut line) = (None, 0, Vec::new());
        while reader.read_until(b'\n', &mut line).map_err(failed)? > 0 {
            let parts = text_of(&line).and_then(|text| text.split_once(' '));
            match (&run, parts) {
                (None, Some(("run", rest))) => run = Some(rest.to_owned()),
                (None, _) if line.ends_with(b"\n") || line.len() > MAX_FIRST_LINE => {
                    let message = "is not a journal of this program; move it away, or give --restart to replace it";
                    return Err(Failure::file_system(format!("{}: {message}", self.part.display())));
                }
                // This is the incomplete last line of an interrupted run.
                _ if !line.ends_with(b"\n") => break,
                (Some(_), Some((subject, rest))) => {
                    if let Some((name, is_error)) = Name::from_line(rest) {
                        let place = Place { input: subject.to_owned(), is_error, ..Place::from_line(len, line.len()) };
                        self.old.insert(name, place);
                    }
                }
                // This line is damaged and is skipped. Reading continues with the next line.
                _ => {}
            }
            len += line.len() as u64;
            line.clear();
        }
        self.len = if self.old.is_empty() { 0 } else { len };
        Ok(run.filter(|_| self.len > 0))
    }

    /// Reads the lines of the finished output and the digests of their inputs.
    ///
    /// # Errors
    /// If the output was not written by a run with the same digest, or was changed since.
    fn read_finished(&mut self) -> Result<(Vec<String>, Vec<String>), Failure> {
        let mut finished = Vec::new();
        let output = &self.output;
        let failed = |error| Failure::io(output, &error);
        self.lock.read_to_end(&mut finished).map_err(failed)?;
        let text = std::fs::read(output).map_err(failed)?;
        let finished = serde_json::from_slice::<Finished>(&finished).ok();
        let Some(finished) = finished.filter(|it| it.run == self.run && it.output == digest(&text)) else {
            let message = "exists and was written by another run or program; give --restart to replace it";
            return Err(Failure::file_system(format!("{}: {message}", output.display())));
        };
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| str::from_utf8(line).map(str::to_owned)).collect::<Result<_, _>>();
        Ok((lines.map_err(|error| failed(io::Error::other(error)))?, finished.rows))
    }

    /// Copies the rows of a finished output into the journal.
    fn import_rows(&mut self, lines: Vec<String>, digests: Vec<String>) -> Result<(), Failure> {
        let rows = lines.into_iter().zip(digests).filter_map(|(line, input)| {
            let (name, is_error) = Name::from_line(&line)?;
            Some(Done { index: 0, input, name, line, is_error })
        });
        let rows: Vec<Done> = rows.collect();
        let places = self.append_rows(&rows)?;
        self.old.extend(rows.into_iter().map(|done| done.name).zip(places));
        Ok(())
    }

    /// Returns the digests of the inputs of rows that earlier runs answered, by name. Failed rows are left out, so that
    /// they are tried again.
    pub(super) fn done(&self) -> HashMap<Name, String> {
        let answered = self.old.iter().filter(|(_, place)| !place.is_error);
        answered.map(|(name, place)| (name.clone(), place.input.clone())).collect()
    }

    /// Appends answered rows to the journal and syncs it to disk.
    pub(super) fn save(&mut self, rows: &[Done]) -> Result<(), Failure> {
        let places = self.append_rows(rows)?;
        self.n_new += rows.len();
        for (done, place) in rows.iter().zip(places) {
            self.put(done.index, place);
        }
        Ok(())
    }

    /// Uses the answer of an earlier run for the row at position `index`.
    pub(super) fn reuse(&mut self, index: usize, name: &Name) {
        if let Some(place) = self.old.get(name).cloned() {
            self.put(index, place);
        }
    }

    fn put(&mut self, index: usize, place: Place) {
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
        }
        self.places[index] = Some(place);
    }

    fn append_rows(&mut self, rows: &[Done]) -> Result<Vec<Place>, Failure> {
        let lines: Vec<String> = rows.iter().map(|done| format!("{} {}", done.input, done.line)).collect();
        let places = self.append(&lines)?;
        let places = places.into_iter().zip(rows).map(|(place, done)| Place {
            input: done.input.clone(),
            is_error: done.is_error,
            ..place
        });
        Ok(places.collect())
    }

    /// Appends lines with their checksums and syncs the file.
    fn append(&mut self, lines: &[String]) -> Result<Vec<Place>, Failure> {
        let mut text = String::new();
        let mut places = Vec::with_capacity(lines.len());
        for line in lines {
            let line = with_checksum(line);
            places.push(Place::from_line(self.len + text.len() as u64, line.len()));
            text.push_str(&line);
        }
        self.io(|file| file.write_all(text.as_bytes()).and_then(|()| file.sync_data()))?;
        self.len += text.len() as u64;
        Ok(places)
    }

    /// Writes the output atomically, unless it is complete already, and removes the journal.
    pub(super) fn finish(mut self) -> Result<Summary, Failure> {
        let places: Vec<Place> = self.places.drain(..).flatten().collect();
        let was_complete =
            self.n_new == 0 && self.n_finished == Some(places.len()) && places.is_sorted_by_key(|place| place.offset);
        if !was_complete {
            let mut journal = &self.file;
            let mut output = Sha256::new();
            let written = write_atomically(&self.output, |file| {
                let mut line = Vec::new();
                for place in &places {
                    journal.seek(SeekFrom::Start(place.offset))?;
                    line.clear();
                    journal.take(place.len as u64).read_to_end(&mut line)?;
                    let row = line.get(place.input.len() + 1..).ok_or(ErrorKind::UnexpectedEof)?;
                    for part in [row, b"\n"] {
                        output.update(part);
                        file.write_all(part)?;
                    }
                }
                Ok(())
            });
            written.map_err(Error::from)?;
            let rows = places.iter().map(|place| place.input.clone()).collect();
            let finished = Finished { run: self.run, output: hex(output), rows };
            let finished = serde_json::to_string(&finished).map_err(io::Error::from)?;
            write_lock(&mut self.lock, &finished).map_err(|error| Failure::io(&self.output, &error))?;
        }
        remove(&self.part)?;
        let n_failed = places.iter().filter(|place| place.is_error).count();
        Ok(Summary { n_rows: places.len(), n_failed, was_complete })
    }

    fn io<T>(&mut self, work: impl FnOnce(&mut File) -> io::Result<T>) -> Result<T, Failure> {
        work(&mut self.file).map_err(|error| Failure::io(&self.part, &error))
    }
}

fn digest(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

fn write_lock(lock: &mut File, text: &str) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(text.as_bytes())?;
    lock.sync_data()
}

fn open(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| Failure::io(path, &error))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::io(path, &error)),
        _ => Ok(()),
    }
}

fn with_suffix(output: &Path, suffix: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: usize) -> Done {
        let (input, name) = (format!("digest-{line}"), Name::Line(line));
        let text = name.line([("text", r#""a\nb""#.to_owned())]);
        Done { index: line - 1, input, name, line: text, is_error: false }
    }

    fn failed_row(line: usize) -> Done {
        let text = Name::Line(line).line([("error", r#""no""#.to_owned())]);
        Done { line: text, is_error: true, ..row(line) }
    }

    /// Returns the line numbers of the rows that are done.
    fn lines(journal: &Journal) -> Vec<usize> {
        let done = journal.done();
        let mut lines: Vec<usize> = (1..10).filter(|&line| done.contains_key(&Name::Line(line))).collect();
        lines.sort();
        assert_eq!(lines.len(), done.len());
        lines
    }

    fn open_run(output: &Path) -> Journal {
        Journal::open(output, "run", false).unwrap()
    }

    fn output_in(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("out.jsonl")
    }

    #[test]
    fn truncated_journal_keeps_complete_lines() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        let mut journal = open_run(&output);
        let mut ends = vec![(journal.len, 0)];
        for line in 1..=4 {
            journal.save(&[row(line)]).unwrap();
            ends.push((journal.len, line));
        }
        let part = journal.part.clone();
        drop(journal);
        let bytes = std::fs::read(&part).unwrap();
        for len in 0..=bytes.len() {
            std::fs::write(&part, &bytes[..len]).unwrap();
            let mut journal = open_run(&output);
            let n_whole = ends.iter().rfind(|(end, _)| *end <= len as u64).map_or(0, |(_, lines)| *lines);
            assert_eq!(lines(&journal), (1..=n_whole).collect::<Vec<_>>(), "{len} of {} bytes", bytes.len());
            journal.save(&[row(9)]).unwrap();
            drop(journal);
            assert!(lines(&open_run(&output)).contains(&9), "{len} bytes");
        }
    }

    #[test]
    fn damaged_lines_are_skipped_and_foreign_files_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        let mut journal = open_run(&output);
        journal.save(&[row(1), row(2), row(3)]).unwrap();
        let part = journal.part.clone();
        drop(journal);
        let text = std::fs::read_to_string(&part).unwrap();
        std::fs::write(&part, text.replace("digest-2", "digest-5")).unwrap();
        assert_eq!(lines(&open_run(&output)), [1, 3]);
        std::fs::write(&part, "half of a download\n").unwrap();
        let refused = Journal::open(&output, "run", false).unwrap_err();
        assert!(refused.message().contains("not a journal"), "{}", refused.message());
        assert_eq!(std::fs::read_to_string(&part).unwrap(), "half of a download\n");
    }

    #[test]
    fn last_line_of_a_row_counts() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        let mut journal = open_run(&output);
        journal.save(&[row(2), failed_row(2)]).unwrap();
        for edit in 0..40 {
            journal.save(&[Done { input: format!("edit-{edit}"), ..row(1) }]).unwrap();
        }
        drop(journal);
        let journal = open_run(&output);
        assert_eq!(journal.done()[&Name::Line(1)], "edit-39");
        assert_eq!(lines(&journal), [1], "failed rows are not done");
    }

    #[test]
    fn output_is_in_input_order() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        let mut journal = open_run(&output);
        journal.save(&[row(3), row(1)]).unwrap();
        drop(journal);
        let mut journal = open_run(&output);
        journal.save(&[row(4)]).unwrap();
        journal.reuse(2, &Name::Line(3));
        journal.save(&[row(2)]).unwrap();
        journal.reuse(0, &Name::Line(1));
        let summary = journal.finish().unwrap();
        assert_eq!(summary, Summary { n_rows: 4, n_failed: 0, was_complete: false });
        let expected: String = (1..=4).map(|line| format!("{}\n", row(line).line)).collect();
        assert_eq!(std::fs::read_to_string(&output).unwrap(), expected);
    }

    #[test]
    fn empty_journal_does_not_claim_the_output() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        drop(open_run(&output));
        let mut journal = Journal::open(&output, "another", false).unwrap();
        journal.save(&[row(1)]).unwrap();
        drop(journal);
        assert!(Journal::open(&output, "run", false).is_err());

        // An empty journal does not claim the output of another program either.
        let output = folder.path().join("theirs.jsonl");
        drop(open_run(&output));
        std::fs::write(&output, "theirs").unwrap();
        assert!(Journal::open(&output, "run", false).is_err());
    }

    #[test]
    fn output_accepts_one_writer_and_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        let mut journal = open_run(&output);
        assert!(Journal::open(&output, "run", false).is_err(), "locked");
        journal.save(&[row(1)]).unwrap();
        drop(journal);
        assert!(Journal::open(&output, "another", false).is_err());
        let mut journal = open_run(&output);
        journal.reuse(0, &Name::Line(1));
        assert!(!journal.finish().unwrap().was_complete);
        let modified = || std::fs::metadata(&output).unwrap().modified().unwrap();
        let written = modified();

        // The same input again.
        let mut journal = open_run(&output);
        assert_eq!(lines(&journal), [1]);
        journal.reuse(0, &Name::Line(1));
        assert_eq!(journal.finish().unwrap(), Summary { n_rows: 1, n_failed: 0, was_complete: true });
        assert_eq!(modified(), written);
        assert!(!with_suffix(&output, ".part").exists());

        assert!(Journal::open(&output, "another", false).is_err());
        assert!(lines(&Journal::open(&output, "another", true).unwrap()).is_empty());
    }

    #[test]
    fn edited_input_reuses_answers_of_the_finished_output() {
        let folder = tempfile::tempdir().unwrap();
        let output = output_in(&folder);
        let mut journal = open_run(&output);
        journal.save(&[row(1), failed_row(2), row(3)]).unwrap();
        assert_eq!(journal.finish().unwrap().n_failed, 1);
        for _ in 0..2 {
            assert_eq!(lines(&open_run(&output)), [1, 3]);
        }
        // Row 2 was removed from the input.
        let mut journal = open_run(&output);
        journal.reuse(0, &Name::Line(1));
        journal.reuse(1, &Name::Line(3));
        assert!(!journal.finish().unwrap().was_complete);
        assert_eq!(std::fs::read_to_string(&output).unwrap(), format!("{}\n{}\n", row(1).line, row(3).line));

        std::fs::write(&output, "{\"line\":1,\"text\":\"by hand\"}\n").unwrap();
        assert!(Journal::open(&output, "run", false).is_err());
    }
}
