//! Stop strings: text whose appearance ends an answer.

/// The texts that end an answer.
///
/// Source: `StopStringCriteria`. An answer ends with a token when a stop string occurs in the text and its last byte
/// belongs to that token; the token may go on after it. What came before, the prompt included, may hold its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStrings {
    stop_strings: Vec<String>,
    /// Bytes of the longest.
    longest: usize,
}

/// A stop string at the end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopMatch {
    /// Which stop string.
    pub index: usize,
    /// Bytes of the text from the stop string's beginning on: what is cut where it should not be shown.
    pub from_end: usize,
    /// Bytes of the last token that come after the stop string.
    pub after: usize,
}

/// A stop string is empty: it would end every answer at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`stop_strings` holds an empty string")]
pub struct EmptyStopString;

impl StopStrings {
    /// Looks for these, each non-empty.
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stop_strings.is_empty()
    }

    /// Whether the last piece completes a stop string; of several the one that begins first.
    ///
    /// `pieces` are the bytes that each token adds to the text, in order. Only as many are read, from the last one
    /// back, as the longest stop string can reach; none if there are no stop strings.
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

    /// [`find`](Self::find) in a text whose last `n_new` bytes are new.
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
