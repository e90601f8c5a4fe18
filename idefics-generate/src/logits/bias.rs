//! Biased and forbidden token sequences.

use super::{LogitsProcessor, Row};

/// Adds a bias to the token that would complete a sequence.
///
/// Source: `SequenceBiasLogitsProcessor`.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceBias {
    /// Single tokens, which are biased always.
    single: Vec<(u32, f32)>,
    /// What must come before, the biased token, its bias; in the order in which they are added up.
    longer: Vec<(Vec<u32>, u32, f32)>,
    /// Sums of one row; zero between calls.
    sums: Vec<f32>,
}

impl SequenceBias {
    /// Biases by non-empty sequence, in units of the scores. The last of equal sequences counts.
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
        // The reference adds up the biases of a token first, then adds their sum to its score.
        for id in biased {
            scores[id] += std::mem::take(&mut self.sums[id]);
        }
    }
}

/// Forbids tokens, and tokens that would complete a sequence. A single end token is never forbidden by it.
///
/// Source: `NoBadWordsLogitsProcessor`.
#[derive(Debug, Clone, PartialEq)]
pub struct NoBadWords(SequenceBias);

impl NoBadWords {
    /// Forbids `bad_words_ids`, each non-empty, `[eos]` of any of `eos_token_ids` aside.
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
