//! Biased and forbidden token sequences.

use super::{LogitsProcessor, Row};

/// Adds a bias to each token that would complete a given sequence.
///
/// Source: `SequenceBiasLogitsProcessor`.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceBias {
    /// Sequences of one token: the token, and its bias, which is always added.
    single: Vec<(u32, f32)>,
    /// Longer sequences: all tokens but the last, the last token, and its bias. The biases of a token are summed in the
    /// order of this list.
    longer: Vec<(Vec<u32>, u32, f32)>,
    /// Sum of the biases of each token, for the row being processed. All sums are 0 between calls.
    sums: Vec<f32>,
}

impl SequenceBias {
    /// Creates a processor from non-empty sequences with their biases. If a sequence occurs twice, the last bias
    /// counts.
    pub fn new(biases: &[(Vec<u32>, f32)]) -> Self {
        let mut unique: Vec<(&[u32], f32)> = Vec::new();
        for (sequence, bias) in biases {
            match unique.iter_mut().find(|(known, _)| known == sequence) {
                Some((_, known)) => *known = *bias,
                None => unique.push((sequence, *bias)),
            }
        }
        let (mut single, mut longer) = (Vec::new(), Vec::new());
        for (sequence, bias) in unique {
            match sequence.split_last() {
                Some((&last, [])) => single.push((last, bias)),
                Some((&last, prefix)) => longer.push((prefix.to_vec(), last, bias)),
                None => {}
            }
        }
        Self { single, longer, sums: Vec::new() }
    }
}

impl LogitsProcessor for SequenceBias {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        self.sums.resize(scores.len(), 0.0);
        let completing = self.longer.iter().filter(|(prefix, _, _)| row.input_ids.ends_with(prefix));
        let biases = self.single.iter().copied().chain(completing.map(|&(_, last, bias)| (last, bias)));
        let mut biased = Vec::new();
        for (id, bias) in biases {
            if let Some(sum) = self.sums.get_mut(id as usize) {
                *sum += bias;
                biased.push(id as usize);
            }
        }
        // As in the reference, the biases of a token are summed before they are added to its score.
        for id in biased {
            scores[id] += std::mem::take(&mut self.sums[id]);
        }
    }
}

/// Forbids single tokens, and tokens that would complete a forbidden sequence. An end token alone is never forbidden.
///
/// Source: `NoBadWordsLogitsProcessor`.
#[derive(Debug, Clone, PartialEq)]
pub struct NoBadWords(SequenceBias);

impl NoBadWords {
    /// Creates a processor that forbids the non-empty sequences `bad_words_ids`, except those that consist of a single
    /// end token.
    pub fn new(bad_words_ids: &[Vec<u32>], eos_token_ids: &[u32]) -> Self {
        let is_eos = |word: &[u32]| matches!(word, [id] if eos_token_ids.contains(id));
        let forbidden = bad_words_ids.iter().filter(|word| !is_eos(word));
        Self(SequenceBias::new(&forbidden.map(|word| (word.clone(), f32::NEG_INFINITY)).collect::<Vec<_>>()))
    }
}

impl LogitsProcessor for NoBadWords {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        self.0.process(row, scores);
    }
}
