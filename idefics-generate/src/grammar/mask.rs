//! The logits processor of a grammar.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::toktrie::SimpleVob;
use llguidance::{TokenParser, api::StopReason, panic_utils};

use crate::logits::{LogitsProcessor, Row, RowEnd, RowError};

/// Forbids the tokens that the grammar does not allow. Each row has its own parser.
pub(super) struct GrammarMask {
    start: Arc<TokenParser>,
    /// Number of tokens in the vocabulary. In masks, the id equal to this number stands for the end of the answer.
    width: usize,
    eos_token_ids: Vec<u32>,
    /// The parser of each row. The key is the sample and the index of the row within the sample.
    rows: HashMap<(usize, usize), RowState>,
}

impl std::fmt::Debug for GrammarMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMask").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

/// What the grammar allows as the next token of a row.
enum Allowed {
    /// The tokens of a mask.
    Mask(SimpleVob),
    /// Only the end of the answer.
    End,
    /// Nothing, or the parser reached a limit.
    Nothing(RowError),
}

struct RowState {
    parser: TokenParser,
    /// Number of generated tokens that the parser has read.
    n_read: usize,
    /// The error of the parser, after which it cannot be used.
    error: Option<RowError>,
    /// How the row ends if the last scores allow no token.
    ending: Option<RowEnd>,
}

impl GrammarMask {
    pub(super) fn new(start: Arc<TokenParser>, width: usize, eos_token_ids: &[u32]) -> Self {
        Self { start, width, eos_token_ids: eos_token_ids.to_vec(), rows: HashMap::new() }
    }
}

impl RowState {
    fn new(start: &TokenParser) -> Self {
        Self { parser: start.deep_clone(), n_read: 0, error: None, ending: None }
    }

    /// Passes the generated tokens that the parser has not read yet to the parser.
    fn read(&mut self, generated: &[u32]) {
        for &token in generated.get(self.n_read..).unwrap_or_default() {
            self.n_read += 1;
            if self.error.is_some() {
                return;
            }
            let parser = &mut self.parser;
            let read = panic_utils::catch_unwind(AssertUnwindSafe(|| {
                parser.consume_token(token)?;
                parser.check_stop()
            }));
            if read.is_err() {
                self.error = Some(RowError::GrammarLimit);
            }
        }
    }

    /// Returns the tokens that may follow.
    fn allowed(&mut self) -> Allowed {
        if let Some(error) = self.error {
            return Allowed::Nothing(error);
        }
        match self.parser.stop_reason() {
            StopReason::NotStopped => {}
            reason if reason.is_ok() => return Allowed::End,
            _ => return Allowed::Nothing(RowError::GrammarLimit),
        }
        let parser = &mut self.parser;
        match panic_utils::catch_unwind(AssertUnwindSafe(|| parser.compute_mask())) {
            Ok(mask) => Allowed::Mask(mask),
            Err(_) => {
                let error = match self.parser.stop_reason() {
                    StopReason::NoExtensionBias => RowError::NothingAllowed,
                    _ => RowError::GrammarLimit,
                };
                self.error = Some(error);
                Allowed::Nothing(error)
            }
        }
    }
}

impl LogitsProcessor for GrammarMask {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        let state = self.rows.entry((row.sample, row.beam)).or_insert_with(|| RowState::new(&self.start));
        state.read(&row.input_ids[row.prompt_len..]);
        let allowed = state.allowed();
        let may_end = match &allowed {
            Allowed::Mask(mask) => mask.is_allowed(self.width as u32),
            Allowed::End => true,
            Allowed::Nothing(_) => false,
        };
        let score_of = |id: u32| may_end.then(|| scores.get(id as usize).copied()).flatten();
        let ends: Vec<(u32, f32)> = self.eos_token_ids.iter().filter_map(|&id| Some((id, score_of(id)?))).collect();
        match &allowed {
            Allowed::Mask(mask) => forbid_unset(mask, self.width, scores),
            Allowed::End | Allowed::Nothing(_) => scores.iter_mut().for_each(forbid),
        }
        for &id in &self.eos_token_ids {
            scores.get_mut(id as usize).into_iter().for_each(forbid);
        }
        for (id, score) in ends {
            scores[id as usize] = score;
        }
        let is_exhausted = scores.iter().all(|score| *score == f32::NEG_INFINITY);
        state.ending = is_exhausted.then_some(match allowed {
            Allowed::Nothing(error) => RowEnd::Failed(error),
            _ if may_end => RowEnd::Complete,
            _ => RowEnd::Failed(RowError::NothingAllowed),
        });
    }

    fn ending(&self, row: &Row<'_>) -> Option<RowEnd> {
        self.rows.get(&(row.sample, row.beam))?.ending
    }
}

/// Forbids a token. A score of NaN or `+inf` stays unchanged, so that it is reported.
fn forbid(score: &mut f32) {
    if *score < f32::INFINITY {
        *score = f32::NEG_INFINITY;
    }
}

/// Forbids the tokens that are not in a mask for `width` tokens.
fn forbid_unset(mask: &SimpleVob, width: usize, scores: &mut [f32]) {
    let (inside, outside) = scores.split_at_mut(width.min(scores.len()));
    for (&word, scores) in mask.as_slice().iter().zip(inside.chunks_mut(32)) {
        if word == u32::MAX {
            continue;
        }
        for (bit, score) in scores.iter_mut().enumerate() {
            if word & (1 << bit) == 0 {
                forbid(score);
            }
        }
    }
    outside.iter_mut().for_each(forbid);
}
