//! Rows that are answered together.

use std::collections::{HashMap, VecDeque};

use idefics_generate::processor::Sample;

use super::rows::{InputRow, Name};
use crate::failure::Failure;

/// Tokens that an image counts for when rows of similar length are looked for; about that of Idefics2.
const TOKENS_PER_IMAGE: usize = 64;

/// Tokens from which on a row is long: shorter ones that are padded to it cost little.
const LONG: usize = 4096;

/// How many times as long as another a long row is at most if they are answered together.
const LONGER: usize = 4;

/// Rows that are answered together.
pub(super) struct Group {
    pub(super) rows: Vec<GroupRow>,
    /// The samples of the rows that are to be answered, in their order.
    pub(super) samples: Vec<Sample>,
    /// Why no more rows can be read; such a group is the last.
    pub(super) failure: Option<Failure>,
}

/// A row of a group.
pub(super) struct GroupRow {
    pub(super) row: InputRow,
    /// Whether it was answered by an earlier run.
    pub(super) is_done: bool,
}

impl Group {
    /// Whether a model is needed.
    pub(super) fn is_done(&self) -> bool {
        self.rows.iter().all(|row| row.is_done)
    }
}

impl AsRef<[Sample]> for Group {
    fn as_ref(&self) -> &[Sample] {
        &self.samples
    }
}

/// Takes rows from the input, some at a time, and puts those of similar length together, the longest first. A long one
/// does not pad short ones to its length, and comes after them: they are kept if it takes more memory than there is. Which
/// rows are together depends on the input alone, not on what was done before.
pub(super) struct Groups<'k, R> {
    rows: R,
    /// Digest of each row that was answered, by its name.
    done: &'k HashMap<Name, String>,
    /// Rows that are read together.
    window: usize,
    /// Rows of a group.
    size: usize,
    ready: VecDeque<Group>,
}

impl<'k, R: Iterator<Item = Result<InputRow, Failure>>> Groups<'k, R> {
    /// Groups of `size` rows out of every `window`.
    pub(super) fn new(rows: R, done: &'k HashMap<Name, String>, size: usize, window: usize) -> Self {
        Self { rows, done, window, size, ready: VecDeque::new() }
    }

    fn read(&mut self) {
        let (mut rows, mut failure) = (Vec::new(), None);
        for row in self.rows.by_ref().take(self.window) {
            match row {
                Ok(row) => rows.push(row),
                Err(error) => failure = Some(error),
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.length(TOKENS_PER_IMAGE)));
        let mut rows = rows.into_iter().peekable();
        let mut groups = Vec::new();
        while let Some(longest) = rows.peek().map(|row| row.length(TOKENS_PER_IMAGE)) {
            let is_similar = |row: &InputRow| longest <= LONG || longest / LONGER <= row.length(TOKENS_PER_IMAGE);
            let group = std::iter::from_fn(|| rows.next_if(is_similar)).take(self.size);
            let rows: Vec<GroupRow> = group
                .map(|row| {
                    let is_done = self.done.get(&row.name) == Some(&row.digest);
                    GroupRow { row, is_done }
                })
                .collect();
            let asked = rows.iter().filter(|row| !row.is_done);
            let samples = asked.filter_map(|row| row.row.sample.clone().ok()).collect();
            groups.push((longest, Group { rows, samples, failure: None }));
        }
        groups.sort_by_key(|(longest, _)| if *longest > LONG { *longest } else { 0 });
        self.ready.extend(groups.into_iter().map(|(_, group)| group));
        if failure.is_some() {
            self.ready.push_back(Group { rows: Vec::new(), samples: Vec::new(), failure });
        }
    }
}

impl<R: Iterator<Item = Result<InputRow, Failure>>> Iterator for Groups<'_, R> {
    type Item = Group;

    fn next(&mut self) -> Option<Group> {
        if self.ready.is_empty() {
            self.read();
        }
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_come_last_and_by_themselves() {
        let groups = |bytes: &[usize], size| {
            let rows = bytes.iter().enumerate().map(|(index, &bytes)| {
                let sample = Ok(Sample::Text { text: "a".repeat(bytes), images: Vec::new() });
                let (name, own) = (Name::Line(index + 1), Vec::new());
                Ok(InputRow { index, name, digest: String::new(), own, sample })
            });
            let done = HashMap::new();
            let groups = Groups::new(rows, &done, size, 100);
            groups.map(|group| group.rows.iter().map(|row| row.row.index).collect()).collect::<Vec<Vec<usize>>>()
        };
        assert_eq!(groups(&[8, 4000, 80, 0], 8), [[1, 2, 0, 3]]);
        assert_eq!(groups(&[8, 1 << 20, 1 << 19, 80], 8), [[3, 0], [1, 2]]);
        assert_eq!(groups(&[8, 1 << 20, 80], 1), [[2], [0], [1]]);
        assert_eq!(groups(&[1 << 20, 8, 1 << 17], 8), [[1], [2], [0]]);
    }
}
