//! The logits processors of a call, in the reference's order.

use super::{
    EncoderNoRepeatNGram, EncoderRepetitionPenalty, Epsilon, Eta, ExponentialDecayLengthPenalty, ForcedBosToken,
    ForcedEosToken, InfNanRemove, LogitsProcessor, MinLength, MinNewTokens, MinP, NoBadWords, NoRepeatNGram, Normalize,
    RepetitionPenalty, Row, RowEnd, SequenceBias, SuppressTokens, SuppressTokensAtBegin, Temperature, TopH, TopK, TopP,
    Typical,
};
use crate::generation_config::{GenerationConfig, GenerationError};

/// All logits processors that the options of a call require.
///
/// The processors run in this order: sequence bias, encoder repetition penalty, repetition penalty, n-grams, encoder
/// n-grams, bad words, minimum lengths, forced first and last tokens, invalid values, exponential decay, suppressed
/// tokens. Then come the processors added with [`push`](Self::push). With `do_sample`, these filters follow:
/// temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta. Renormalisation is last.
///
/// Source: `GenerationMixin._get_logits_processor`.
#[derive(Debug)]
pub struct ProcessorChain {
    processors: Vec<Box<dyn LogitsProcessor>>,
    warpers: Vec<Box<dyn LogitsProcessor>>,
    do_sample: bool,
}

impl ProcessorChain {
    /// Validates the options and creates their processors.
    ///
    /// # Errors
    /// Those of [`GenerationConfig::validate`]. The caller must also call [`GenerationConfig::check_vocab`].
    pub fn new(options: &GenerationConfig) -> Result<Self, GenerationError> {
        options.validate()?;
        Ok(Self { processors: processors(options), warpers: warpers(options), do_sample: options.do_sample() })
    }

    /// Adds a custom processor. It runs after the processors of the options, and before filters and renormalisation.
    pub fn push(&mut self, processor: Box<dyn LogitsProcessor>) {
        self.processors.push(processor);
    }

    /// Returns whether there are no processors, so that [`process`](Self::process) has no effect.
    pub fn is_empty(&self) -> bool {
        self.processors.is_empty() && self.warpers.is_empty()
    }

    /// Returns whether scores are needed on the host. If not, the device can choose the most likely token.
    pub fn needs_scores(&self) -> bool {
        self.do_sample || !self.is_empty()
    }

    /// Applies every processor to the scores of a row's next token, `[vocab_size]`.
    pub fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        for processor in self.processors.iter_mut().chain(&mut self.warpers) {
            processor.process(row, scores);
        }
    }

    /// Returns how a row ends if a processor allowed no token in the scores that were [processed](Self::process) last.
    pub fn ending(&self, row: &Row<'_>) -> Option<RowEnd> {
        self.processors.iter().find_map(|processor| processor.ending(row))
    }
}

fn processors(options: &GenerationConfig) -> Vec<Box<dyn LogitsProcessor>> {
    let eos_token_ids = || options.eos_token_ids().to_vec();
    let has_eos = !options.eos_token_ids().is_empty();
    let mut chain: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    if let Some(biases) = &options.sequence_bias {
        chain.push(Box::new(SequenceBias::new(biases)));
    }
    if options.encoder_repetition_penalty() != 1.0 {
        chain.push(Box::new(EncoderRepetitionPenalty::new(options.encoder_repetition_penalty() as f32)));
    }
    if options.repetition_penalty() != 1.0 {
        chain.push(Box::new(RepetitionPenalty::new(options.repetition_penalty() as f32)));
    }
    if options.no_repeat_ngram_size() > 0 {
        chain.push(Box::new(NoRepeatNGram::new(options.no_repeat_ngram_size())));
    }
    if options.encoder_no_repeat_ngram_size() > 0 {
        chain.push(Box::new(EncoderNoRepeatNGram::new(options.encoder_no_repeat_ngram_size())));
    }
    if let Some(bad_words_ids) = &options.bad_words_ids {
        chain.push(Box::new(NoBadWords::new(bad_words_ids, options.eos_token_ids())));
    }
    match options.min_new_tokens {
        None if has_eos && options.min_length() > 0 => {
            chain.push(Box::new(MinLength { min_length: options.min_length(), eos_token_ids: eos_token_ids() }));
        }
        Some(min_new_tokens) if has_eos && min_new_tokens > 0 => {
            chain.push(Box::new(MinNewTokens { min_new_tokens, eos_token_ids: eos_token_ids() }));
        }
        _ => {}
    }
    if let Some(bos_token_id) = options.forced_bos_token_id {
        chain.push(Box::new(ForcedBosToken { bos_token_id }));
    }
    if !options.forced_eos_token_ids().is_empty() {
        let eos_token_ids = options.forced_eos_token_ids().to_vec();
        chain.push(Box::new(ForcedEosToken { max_length: options.max_length(), eos_token_ids }));
    }
    if options.remove_invalid_values() {
        chain.push(Box::new(InfNanRemove));
    }
    if let Some((start, factor)) = options.exponential_decay_length_penalty {
        chain.push(Box::new(ExponentialDecayLengthPenalty { start, factor, eos_token_ids: eos_token_ids() }));
    }
    if let Some(suppress_tokens) = options.suppress_tokens.clone() {
        chain.push(Box::new(SuppressTokens { suppress_tokens }));
    }
    if let Some(begin_suppress_tokens) = options.begin_suppress_tokens.clone() {
        let has_forced_bos = options.forced_bos_token_id.is_some();
        chain.push(Box::new(SuppressTokensAtBegin { begin_suppress_tokens, has_forced_bos }));
    }
    chain
}

fn warpers(options: &GenerationConfig) -> Vec<Box<dyn LogitsProcessor>> {
    let mut chain: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    if options.do_sample() {
        let min_tokens_to_keep = options.min_tokens_to_keep();
        if options.temperature() != 1.0 {
            chain.push(Box::new(Temperature { temperature: options.temperature() as f32 }));
        }
        if let Some(top_h) = options.top_h {
            chain.push(Box::new(TopH { top_h }));
        }
        if options.top_k() > 0 {
            chain.push(Box::new(TopK { top_k: options.top_k(), min_tokens_to_keep }));
        }
        if options.top_p() < 1.0 {
            chain.push(Box::new(TopP { top_p: options.top_p(), min_tokens_to_keep }));
        }
        if let Some(min_p) = options.min_p {
            chain.push(Box::new(MinP { min_p, min_tokens_to_keep }));
        }
        if options.typical_p() < 1.0 {
            chain.push(Box::new(Typical { mass: options.typical_p(), min_tokens_to_keep }));
        }
        if options.epsilon_cutoff() > 0.0 {
            chain.push(Box::new(Epsilon { epsilon: options.epsilon_cutoff(), min_tokens_to_keep }));
        }
        if options.eta_cutoff() > 0.0 {
            chain.push(Box::new(Eta { epsilon: options.eta_cutoff(), min_tokens_to_keep }));
        }
    }
    if options.renormalize_logits() {
        chain.push(Box::new(Normalize));
    }
    chain
}
