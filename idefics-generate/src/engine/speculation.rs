//! Speculation without a draft model: the next tokens of an answer are proposed from its own text, and a single decode
//! step verifies several of them.
//!
//! Answers that copy or edit a given text repeat it for many tokens. The last three tokens of prompt and answer are
//! searched for in the text before them. If they are not found there, the last two are. The tokens that followed the
//! latest match are the proposals. Source: prompt lookup decoding,
//! <https://github.com/apoorvumang/prompt-lookup-decoding>.
//!
//! # Verification
//!
//! The step has a row for the last token and for each proposal. All rows have the pages of the answer, and each row
//! sees the positions up to its own token. Every layer writes the keys and values of all rows before it attends. The
//! logits of each row are therefore those of a step of one token, if the tokens before it are right. Tokens are then
//! chosen in order, each by the answer's own logits processors and draw, until one differs from its proposal. This
//! token is the last one that counts. Processors are called exactly as without speculation, with the same tokens before
//! each position, so grammars and custom processors need no special case.
//!
//! # Equality
//!
//! The tokens are those without speculation, greedy or drawn: a draw depends on the seed, the prompt, the answer's
//! number and the step ([`Sampler`](crate::logits::Sampler)), and on the logits. The logits have the same bits if the
//! kernels of a step with several rows give each row the bits that it has alone. On the CPU this holds for weights in
//! floating point and for int8, for up to [`MAX_GEMV_ROWS`] rows. It holds for all formats if
//! [`EngineOptions::reproducible`](super::EngineOptions::reproducible) is set, because a single row then uses the same
//! kernels as several rows. It does not hold for weights in four bits otherwise, nor for GGUF blocks without AVX-512,
//! and it is not known for GPUs. There, the tokens may differ where two tokens are almost equally likely, as they may between an
//! answer alone and in company.
//!
//! [`Speculation::Exact`], the default, therefore compares the bits once for each number of tokens that a step
//! verifies: after the first such step, the first token of the step also runs alone. If the logits differ, those of the
//! token alone count, the proposals are dropped, and the engine does not speculate again.
//!
//! # Cost
//!
//! A step of several tokens takes longer than a step of one. The scheduler knows both times, and the answer knows which
//! share of its proposals was right. Proposals are made and compared in every step, also if they are not verified,
//! because this costs almost nothing. An answer that repeats nothing therefore never runs a step of several tokens. If
//! more than one row decodes, nothing is proposed: such steps already use the weights several times.

use std::num::NonZeroUsize;
use std::str::FromStr;

use idefics_kernels::MAX_GEMV_ROWS;

/// Maximum number of tokens that are proposed at once.
const MOST: usize = MAX_GEMV_ROWS - 1;

/// Lengths of the n-grams that are searched for, in this order.
const NGRAMS: [usize; 2] = [3, 2];

/// Expected share of right proposals before any has been compared.
const FIRST_ACCEPTANCE: f64 = 0.25;

/// Weight of the newest proposal in the share of right proposals.
const NEWEST: f64 = 0.15;

/// Whether tokens are proposed and verified; see the module `engine::speculation` for how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Speculation {
    /// Never.
    Off,
    /// Only if a step that verifies proposals gives the same bits as steps of one token, with this model on this
    /// device.
    #[default]
    Exact,
    /// At most this number of tokens at once, but not more than 7, even if the bits differ. Answers may then change where
    /// two tokens are almost equally likely.
    UpTo(NonZeroUsize),
}

/// The text is neither `auto`, nor `off`, nor a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, off, or a number of tokens from 1 to {MOST}")]
pub struct UnknownSpeculation;

impl FromStr for Speculation {
    type Err = UnknownSpeculation;

    fn from_str(text: &str) -> Result<Self, UnknownSpeculation> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Exact),
            number => {
                let number = number.parse().ok().filter(|number: &NonZeroUsize| number.get() <= MOST);
                number.map(Self::UpTo).ok_or(UnknownSpeculation)
            }
        }
    }
}

impl Speculation {
    /// Returns the maximum number of tokens that are proposed at once.
    pub(super) fn limit(self) -> usize {
        match self {
            Self::Off => 0,
            Self::Exact => MOST,
            Self::UpTo(most) => most.get().min(MOST),
        }
    }
}

/// Whether steps of several tokens have the same bits as steps of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exactness {
    /// It has not been compared.
    Unknown,
    /// They have the same bits, or need not have them.
    Proven,
    /// They differ.
    Refuted,
}

/// Proposals for an answer, and how many of them were right.
#[derive(Debug)]
pub(super) struct Proposer {
    /// Proposals for the tokens from position `at` on.
    tokens: Vec<u32>,
    at: usize,
    acceptance: f64,
}

impl Proposer {
    pub(super) fn new() -> Self {
        Self { tokens: Vec::new(), at: 0, acceptance: FIRST_ACCEPTANCE }
    }

    /// Proposes at most `limit` tokens that may follow `text`, the tokens of prompt and answer.
    pub(super) fn propose(&mut self, text: &[u32], limit: usize) -> &[u32] {
        if self.at != text.len() {
            self.at = text.len();
            self.tokens = lookup(text, limit);
        }
        &self.tokens
    }

    /// Returns the proposals for the tokens from position `at` on.
    pub(super) fn proposals(&self, at: usize) -> &[u32] {
        if self.at <= at { self.tokens.get(at - self.at..).unwrap_or_default() } else { &[] }
    }

    /// Returns the share of proposals that were right, counting only proposals before which all others of the same step
    /// were right.
    pub(super) fn acceptance(&self) -> f64 {
        self.acceptance
    }

    /// Compares the token that was chosen at position `at` with its proposal. After a wrong proposal, the later ones are
    /// dropped.
    pub(super) fn compare(&mut self, at: usize, token: u32) {
        let Some(proposal) = self.proposals(at).first() else { return };
        let is_right = *proposal == token;
        self.acceptance += NEWEST * (f64::from(u8::from(is_right)) - self.acceptance);
        if !is_right {
            self.tokens.clear();
        }
    }
}

/// Returns the tokens that followed the latest earlier occurrence of the last three tokens of `text`, or else of the
/// last two. If fewer than `limit` tokens followed, the text is taken to repeat from there, with the distance between
/// the two occurrences as its period.
fn lookup(text: &[u32], limit: usize) -> Vec<u32> {
    let Some(after) = NGRAMS.into_iter().find_map(|n| latest_match(text, n)) else { return Vec::new() };
    let period = text.len() - after;
    (0..limit).map(|index| text[after + index % period]).collect()
}

/// Returns the position after the latest earlier occurrence of the last `n` tokens.
fn latest_match(text: &[u32], n: usize) -> Option<usize> {
    let start = text.len().checked_sub(n)?;
    let suffix = &text[start..];
    (n..text.len()).rev().find(|&after| text[after - n..after] == *suffix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the same as [`lookup`], by comparing all places in ascending order.
    fn naive(text: &[u32], limit: usize) -> Vec<u32> {
        for n in [3, 2] {
            let mut found = None;
            for start in 0..text.len() {
                let is_same = (0..n).all(|index| {
                    let (here, last) = (text.get(start + index), (text.len() + index).checked_sub(n));
                    here.is_some() && last.is_some_and(|last| here == text.get(last))
                });
                if is_same && start + n < text.len() {
                    found = Some(start + n);
                }
            }
            if let Some(after) = found {
                let mut grown = text.to_vec();
                (0..limit).for_each(|index| grown.push(grown[after + index]));
                return grown[text.len()..].to_vec();
            }
        }
        Vec::new()
    }

    #[test]
    fn the_latest_match_of_the_longest_ngram_counts() {
        assert_eq!(lookup(&[1, 2, 3, 9, 8, 7, 2, 3, 6, 1, 2, 3], 2), [9, 8]);
        assert_eq!(lookup(&[1, 2, 3, 9, 2, 3, 6, 5, 2, 3], 3), [6, 5, 2]);
        assert_eq!(lookup(&[4, 4, 4], 3), [4, 4, 4]);
        assert_eq!(lookup(&[1, 2, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        for text in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4]] {
            assert!(lookup(text, 3).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn proposals_are_compared_whether_or_not_they_are_verified() {
        let mut proposer = Proposer::new();
        let mut text = vec![5, 6, 7, 8, 9, 5, 6, 7];
        assert_eq!(proposer.propose(&text, 3), [8, 9, 5]);
        for token in [8, 9] {
            proposer.compare(text.len(), token);
            text.push(token);
        }
        let right = proposer.acceptance();
        assert!(right > FIRST_ACCEPTANCE);
        assert_eq!(proposer.proposals(text.len()), [5]);
        proposer.compare(text.len(), 1);
        text.push(1);
        assert!(proposer.acceptance() < right);
        assert!(proposer.proposals(text.len()).is_empty());
        assert!(proposer.propose(&text, 3).is_empty());
        proposer.compare(text.len(), 4); // without a proposal, nothing changes
    }

    #[test]
    fn settings_are_written_as_on_the_command_line() {
        let seven = Speculation::UpTo(NonZeroUsize::new(7).unwrap());
        assert_eq!(["auto", "off", "7"].map(str::parse), [Ok(Speculation::Exact), Ok(Speculation::Off), Ok(seven)]);
        assert_eq!(["0", "8", "", "on"].map(str::parse::<Speculation>), [Err(UnknownSpeculation); 4]);
        assert_eq!([Speculation::Exact, Speculation::Off, seven].map(Speculation::limit), [7, 0, 7]);
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_naive_search(
            text in prop::collection::vec(0_u32..4, 0..40),
            wide in prop::collection::vec(0_u32..30, 0..80),
            limit in 1_usize..9,
        ) {
            for text in [text, wide] {
                prop_assert_eq!(lookup(&text, limit), naive(&text, limit));
            }
        }
    }
}
