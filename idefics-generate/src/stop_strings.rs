//! Stop strings: strings that end an answer.

/// A set of stop strings.
///
/// A token ends the answer if a stop string occurs in the text and the last byte of the stop string belongs to that
/// token. The token may continue after the stop string. The stop string may begin in earlier tokens, even in the
/// prompt. Source: `StopStringCriteria`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStrings {
    stop_strings: Vec<String>,
    /// Length of the longest stop string in bytes.
    longest: usize,
}

/// A stop string found at the end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopMatch {
    /// Index of the stop string in the set.
    pub index: usize,
    /// Number of bytes from the beginning of the stop string to the end of the text. Cutting off that many bytes
    /// removes the stop string.
    pub from_end: usize,
    /// Number of bytes that the last token has after the stop string.
    pub after: usize,
}

/// Error: a stop string is empty, and would end every answer immediately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`stop_strings` contains an empty string; remove it")]
pub struct EmptyStopString;

impl StopStrings {
    /// Creates a set of non-empty stop strings.
    ///
    /// # Errors
    /// [`EmptyStopString`].
    pub fn new<S: Into<String>>(stop_strings: impl IntoIterator<Item = S>) -> Result<Self, EmptyStopString> {
        let stop_strings: Vec<String> = stop_strings.into_iter().map(Into::into).collect();
        if stop_strings.iter().any(String::is_empty) {
            return Err(EmptyStopString);
        }
        let longest = stop_strings.iter().map(String::len).max().unwrap_or(0);
        Ok(Self { stop_strings, longest })
    }

    /// Returns whether there are no stop strings.
    pub fn is_empty(&self) -> bool {
        self.stop_strings.is_empty()
    }

    /// Finds a stop string that the last piece completes. If several match, returns the one that begins first.
    ///
    /// `pieces` are the bytes that each token adds to the text, in order. They are read from the end, only as far back
    /// as the longest stop string can reach. If there are no stop strings, no pieces are read.
    pub fn find<P: AsRef<[u8]>>(
        &self,
        pieces: impl IntoIterator<Item = P, IntoIter: DoubleEndedIterator>,
    ) -> Option<StopMatch> {
        if self.is_empty() {
            return None;
        }
        let mut pieces = pieces.into_iter().rev();
        let last = pieces.next()?;
        let mut before: Vec<P> = Vec::new();
        let mut n_before = 0;
        while n_before + 1 < self.longest {
            let Some(piece) = pieces.next() else { break };
            n_before += piece.as_ref().len();
            before.push(piece);
        }
        before.reverse();
        let mut tail: Vec<u8> = before.iter().flat_map(AsRef::as_ref).copied().collect();
        tail.extend_from_slice(last.as_ref());
        self.find_in(&tail, last.as_ref().len())
    }

    /// Does the same as [`find`](Self::find) for a text whose last `n_new` bytes belong to the last piece.
    fn find_in(&self, text: &[u8], n_new: usize) -> Option<StopMatch> {
        let n_old = text.len().saturating_sub(n_new);
        let starts = self.stop_strings.iter().enumerate().filter_map(|(index, stop)| {
            let from = (n_old + 1).saturating_sub(stop.len());
            let mut windows = text.get(from..)?.windows(stop.len());
            Some((from + windows.position(|window| window == stop.as_bytes())?, index))
        });
        let (start, index) = starts.min()?;
        let after = text.len() - start - self.stop_strings[index].len();
        Some(StopMatch { index, from_end: text.len() - start, after })
    }
}
