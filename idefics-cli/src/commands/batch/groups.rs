//! Groups rows of similar length into batches.

use std::collections::{HashMap, VecDeque};

use idefics_generate::processor::Sample;

use super::rows::{InputRow, Name};
use crate::failure::Failure;

/// Number of tokens that are assumed per image when the length of a row is estimated. Idefics2 has about as many.
const TOKENS_PER_IMAGE: usize = 64;

/// Number of tokens above which a row counts as long. Padding rows up to this length costs little.
const LONG_ROW: usize = 4096;

/// A long row is grouped only with rows whose length is at least 1/`MAX_LENGTH_RATIO` of the long row's length.
const MAX_LENGTH_RATIO: usize = 4;

/// Rows to answer as one batch.
pub(super) struct Group {
    pub(super) rows: Vec<GroupRow>,
    /// The samples of the rows that still need an answer, in the order of the rows.
    pub(super) samples: Vec<Sample>,
    /// The error that stopped the reading of rows, if any. A group with an error has no rows and is the last group.
    pub(super) failure: Option<Failure>,
}

/// A row of a group.
pub(super) struct GroupRow {
    pub(super) row: InputRow,
    /// Whether an earlier run answered this row.
    pub(super) is_done: bool,
}

impl Group {
    /// Returns whether earlier runs answered all rows, so that no model is needed.
    pub(super) fn is_done(&self) -> bool {
        self.rows.iter().all(|row| row.is_done)
    }
}

impl AsRef<[Sample]> for Group {
    fn as_ref(&self) -> &[Sample] {
        &self.samples
    }
}

/// Reads a window of rows, and groups rows of similar length. Rows are taken from the longest to the shortest. To limit
/// padding, a row of more than [`LONG_ROW`] tokens is not grouped with much shorter rows ([`MAX_LENGTH_RATIO`]). Groups
/// that contain such long rows are returned after all other groups of the window, in order of increasing length: if one
/// of them runs out of memory, the other rows have already been answered and saved. The grouping depends only on the
/// input, not on which rows are done.
pub(super) struct Groups<'k, R> {
    rows: R,
    /// Digests of the rows that earlier runs answered, by name.
    done: &'k HashMap<Name, String>,
    /// Number of rows in a window.
    window: usize,
    /// Maximum number of rows in a group.
    size: usize,
    ready: VecDeque<Group>,
}

impl<'k, R: Iterator<Item = Result<InputRow, Failure>>> Groups<'k, R> {
    /// Groups `rows` into groups of up to `size` rows, reading `window` rows at a time.
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
            let is_similar =
                |row: &InputRow| longest <= LONG_ROW || longest / MAX_LENGTH_RATIO <= row.length(TOKENS_PER_IMAGE);
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
        groups.sort_by_key(|(longest, _)| if *longest > LONG_ROW { *longest } else { 0 });
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
    fn long_rows_come_last_in_groups_of_their_own() {
        let groups = |bytes: &[usize], size| {
            let rows = bytes.iter().enumerate().map(|(index, &bytes)| {
                let sample = Ok(Sample::Text { text: "a".repeat(bytes), images: Vec::new(), videos: Vec::new() });
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
