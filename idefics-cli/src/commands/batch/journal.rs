//! What a batch has done so far: a file of lines with checksums, appended to and synced after each group of rows.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use idefics_generate::Error;
use idefics_generate::nn::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::rows::{Name, hex};
use crate::failure::Failure;

/// The files of one output.
#[derive(Debug)]
pub(super) struct Journal {
    output: PathBuf,
    part: PathBuf,
    file: File,
    /// Held while the program runs; afterwards it says what the output is of.
    lock: File,
    groups: usize,
}

/// A row that was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Done {
    /// The row's name.
    pub(super) name: Name,
    /// Digest of what was asked.
    pub(super) input: String,
    /// The line of the output.
    pub(super) row: Value,
}

/// First line of the journal.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    run: String,
}

/// A line of the journal: a row, its group and the rows of that group. A group that is not there as a whole counts as
/// not done, so that rows are always computed beside the same others.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    group: usize,
    of: usize,
    #[serde(flatten)]
    done: Done,
}

/// What the lock file says of a finished output.
#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    run: String,
    input: String,
    /// Digest of the output.
    output: String,
    /// Digest of what was asked, for each line of the output.
    rows: Vec<String>,
}

impl Finished {
    /// The lines that would come out the same again, if the output still is what was written: those of `run` without an
    /// error. Whether they were asked for again is for the caller to see.
    fn answers(self, lines: Vec<Value>) -> Vec<Done> {
        let done = self.rows.into_iter().zip(lines).filter(|(_, row)| row.get("error").is_none());
        done.filter_map(|(input, row)| Some(Done { name: Name::of_line(&row)?, input, row })).collect()
    }
}

/// What [`Journal::open`] found.
#[derive(Debug)]
pub(super) enum Opened {
    /// Something is left to do.
    Journal(Journal, HashMap<Name, Done>),
    /// The output is there, of this very run: its lines.
    Complete(Vec<Value>),
}

/// What a journal holds.
#[derive(Debug)]
struct Kept {
    head: Head,
    done: HashMap<Name, Done>,
    groups: usize,
    /// Bytes of the lines that are whole.
    len: usize,
}

impl Kept {
    /// A journal without a whole group is as good as none.
    fn read(part: &Path) -> Result<Option<Self>, Failure> {
        let bytes = match std::fs::read(part) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| failed(part, &error))?,
        };
        let mut lines =
            bytes.split_inclusive(|&byte| byte == b'\n').map_while(|line| Some((line.len(), payload(line)?)));
        let head = lines.next().and_then(|(len, text)| Some((len, serde_json::from_str(text).ok()?)));
        let Some((mut len, head)) = head else { return Ok(None) };
        let mut groups: BTreeMap<usize, Vec<Line>> = BTreeMap::new(); // the last answer to a row counts
        for (line_len, text) in lines {
            let Ok(line) = serde_json::from_str::<Line>(text) else { break };
            groups.entry(line.group).or_default().push(line);
            len += line_len;
        }
        let n_groups = groups.last_key_value().map_or(0, |(last, _)| last + 1);
        let whole = groups.into_values().filter(|lines| lines.len() == lines[0].of).flatten();
        let done: HashMap<Name, Done> = whole.map(|line| (line.done.name.clone(), line.done)).collect();
        Ok((!done.is_empty()).then_some(Self { head, done, groups: n_groups, len }))
    }
}

impl Journal {
    /// Takes the output for this run, and reads what was done of it. `run` names everything that the rows depend on
    /// together, `input` the whole input.
    pub(super) fn open(output: &Path, run: &str, input: &str, restart: bool) -> Result<Opened, Failure> {
        if output.is_dir() {
            return Err(Failure::file_system(format!("{}: is a folder, expected a file", output.display())));
        }
        let part = beside(output, ".part");
        let mut lock = open(&beside(output, ".lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Failure::file_system(format!("{}: another run writes this output", output.display()))
            }
            TryLockError::Error(error) => failed(output, &error),
        })?;
        let mut finished = Vec::new();
        lock.read_to_end(&mut finished).map_err(|error| failed(output, &error))?;
        if restart {
            remove(&part)?;
        }
        let head = Head { run: run.to_owned() };
        let kept = Kept::read(&part)?;
        let mut answers = Vec::new();
        match &kept {
            Some(kept) if kept.head != head => {
                let message = "was begun with another model or other options; give --restart to begin anew";
                return Err(Failure::usage(format!("{}: {message}", part.display())));
            }
            None if output.exists() && !restart => {
                let text = std::fs::read(output).map_err(|error| failed(output, &error))?;
                let finished = serde_json::from_slice::<Finished>(&finished).ok();
                match finished.filter(|finished| finished.run == run && finished.output == digest(&text)) {
                    Some(finished) if finished.input == input => return Ok(Opened::Complete(rows(output, &text)?)),
                    Some(finished) => answers = finished.answers(rows(output, &text)?),
                    None => {
                        let message = "exists, of another run or of another program; give --restart to replace it";
                        return Err(Failure::file_system(format!("{}: {message}", output.display())));
                    }
                }
            }
            _ => {}
        }
        let file = open(&part)?;
        let mut journal = Self { output: output.to_owned(), part, file, lock, groups: 0 };
        match kept {
            Some(kept) => {
                journal.cut(kept.len as u64)?;
                journal.groups = kept.groups;
                Ok(Opened::Journal(journal, kept.done))
            }
            None => {
                journal.cut(0)?;
                journal = journal.begin(&head)?;
                journal.keep(&answers)?;
                let done = answers.into_iter().map(|done| (done.name.clone(), done)).collect();
                Ok(Opened::Journal(journal, done))
            }
        }
    }

    fn begin(mut self, head: &Head) -> Result<Self, Failure> {
        let line = checked(&serde_json::to_string(head).map_err(std::io::Error::from)?);
        self.append(&line)?;
        Ok(self)
    }

    /// Drops a line that was torn.
    fn cut(&mut self, len: u64) -> Result<(), Failure> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(std::io::SeekFrom::End(0)));
        cut.map(|_| ()).map_err(|error| failed(&self.part, &error))
    }

    /// Keeps the rows of a group, durably.
    pub(super) fn keep(&mut self, rows: &[Done]) -> Result<(), Failure> {
        let mut lines = String::new();
        for done in rows {
            let line = Line { group: self.groups, of: rows.len(), done: done.clone() };
            lines.push_str(&checked(&serde_json::to_string(&line).map_err(std::io::Error::from)?));
        }
        self.groups += 1;
        self.append(&lines)
    }

    fn append(&mut self, lines: &str) -> Result<(), Failure> {
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| failed(&self.part, &error))
    }

    /// Writes the output, whole or not at all, and removes the journal.
    pub(super) fn finish(mut self, rows: &[&Done], run: &str, input: &str) -> Result<(), Failure> {
        let mut text = String::new();
        for done in rows {
            text.push_str(&format!("{}\n", done.row));
        }
        write_atomically(&self.output, |file| file.write_all(text.as_bytes())).map_err(Error::from)?;
        let finished = Finished {
            run: run.to_owned(),
            input: input.to_owned(),
            output: digest(text.as_bytes()),
            rows: rows.iter().map(|done| done.input.clone()).collect(),
        };
        let finished = serde_json::to_string(&finished).map_err(std::io::Error::from)?;
        write_lock(&mut self.lock, &finished).map_err(|error| failed(&self.output, &error))?;
        remove(&self.part)
    }
}

/// The lines of an output.
fn rows(output: &Path, text: &[u8]) -> Result<Vec<Value>, Failure> {
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(serde_json::from_slice).collect::<Result<_, _>>().map_err(|error| failed(output, &error.into()))
}

fn digest(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

fn write_lock(lock: &mut File, text: &str) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(text.as_bytes())?;
    lock.sync_data()
}

fn open(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| failed(path, &error))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::file_system(format!("{}: {error}", path.display()))
}

fn beside(output: &Path, suffix: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A line with its checksum in front.
fn checked(text: &str) -> String {
    format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()))
}

/// What a whole line holds, if its checksum agrees.
fn payload(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (checksum, text) = line.split_once(' ')?;
    (u32::from_str_radix(checksum, 16).ok()? == crc32fast::hash(text.as_bytes())).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn done(id: usize) -> Done {
        Done { name: Name::Line(id), input: format!("digest {id}"), row: json!({"line": id, "text": "a\nb"}) }
    }

    fn reopened(output: &Path) -> (Journal, Vec<usize>) {
        let Ok(Opened::Journal(journal, done)) = Journal::open(output, "run", "input", false) else {
            panic!("there is something left to do")
        };
        let lines: Vec<usize> = (1..10).filter(|&line| done.contains_key(&Name::Line(line))).collect();
        assert_eq!(lines.len(), done.len());
        (journal, lines)
    }

    #[test]
    fn whatever_is_torn_off_the_end_only_whole_groups_count() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        let (mut journal, lines) = reopened(&output);
        assert!(lines.is_empty());
        journal.keep(&[done(1), done(2)]).unwrap();
        let whole = std::fs::metadata(&journal.part).unwrap().len();
        journal.keep(&[done(3), done(4), done(5)]).unwrap();
        let part = journal.part.clone();
        drop(journal);
        let bytes = std::fs::read(&part).unwrap();
        for len in 0..=bytes.len() {
            std::fs::write(&part, &bytes[..len]).unwrap();
            let (mut journal, lines) = reopened(&output);
            let expected = match len as u64 {
                _ if len == bytes.len() => vec![1, 2, 3, 4, 5],
                len if len >= whole => vec![1, 2],
                _ => vec![],
            };
            assert_eq!(lines, expected, "{len} of {} bytes", bytes.len());
            journal.keep(&[done(9)]).unwrap();
            drop(journal);
            assert!(reopened(&output).1.contains(&9), "{len} bytes");
        }
    }

    #[test]
    fn the_last_answer_to_a_row_counts() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        let (mut journal, _) = reopened(&output);
        for group in 0..40 {
            journal.keep(&[Done { input: format!("edit {group}"), ..done(1) }, done(2)]).unwrap();
        }
        drop(journal);
        let Ok(Opened::Journal(_, done)) = Journal::open(&output, "run", "input", false) else {
            panic!("not complete")
        };
        assert_eq!(done[&Name::Line(1)].input, "edit 39");
    }

    #[test]
    fn a_run_that_did_nothing_keeps_no_other_from_the_output() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        drop(reopened(&output));
        let Ok(Opened::Journal(mut journal, _)) = Journal::open(&output, "another", "input", false) else {
            panic!("nothing was done")
        };
        journal.keep(&[done(1)]).unwrap();
        drop(journal);
        assert!(Journal::open(&output, "run", "input", false).is_err());

        // Nor does it make another program's output its own.
        let output = folder.path().join("theirs.jsonl");
        drop(reopened(&output));
        std::fs::write(&output, "theirs").unwrap();
        assert!(Journal::open(&output, "run", "input", false).is_err());
    }

    #[test]
    fn an_output_has_one_writer_one_run_and_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        let (mut journal, _) = reopened(&output);
        assert!(Journal::open(&output, "run", "input", false).is_err(), "locked");
        journal.keep(&[done(1)]).unwrap();
        drop(journal);
        assert!(Journal::open(&output, "another", "input", false).is_err());
        let (journal, _) = reopened(&output);
        journal.finish(&[&done(1)], "run", "input").unwrap();
        assert_eq!(std::fs::read_to_string(&output).unwrap(), format!("{}\n", done(1).row));
        assert!(matches!(Journal::open(&output, "run", "input", false), Ok(Opened::Complete(_))));
        assert!(Journal::open(&output, "another", "input", false).is_err());
        assert!(matches!(Journal::open(&output, "another", "input", true), Ok(Opened::Journal(..))));
    }

    #[test]
    fn an_edited_input_takes_what_was_answered_from_the_output() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        let (journal, _) = reopened(&output);
        let refused = Done { row: json!({"line": 2, "error": "no"}), ..done(2) };
        journal.finish(&[&done(1), &refused, &done(3)], "run", "input").unwrap();
        for _ in 0..2 {
            let Ok(Opened::Journal(_, done)) = Journal::open(&output, "run", "edited", false) else {
                panic!("there is something left to do")
            };
            let mut inputs: Vec<&str> = done.values().map(|done| done.input.as_str()).collect();
            inputs.sort();
            assert_eq!(inputs, ["digest 1", "digest 3"]);
        }
        remove(&beside(&output, ".part")).unwrap();
        std::fs::write(&output, "{\"line\":1,\"text\":\"by hand\"}\n").unwrap();
        assert!(Journal::open(&output, "run", "edited", false).is_err());
    }
}
