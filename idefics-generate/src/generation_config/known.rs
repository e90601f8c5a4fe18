//! Keys of `generation_config.json` that are not fields of [`GenerationConfig`], and options without effect.

use serde_json::{Value, json};

use super::{GenerationConfig, GenerationError, GenerationWarning, OneOrMany};

/// Options whose effect is not implemented, each with the value that has no effect.
const UNSUPPORTED: [(&str, Value); 9] = [
    ("guidance_scale", Value::Null),
    ("num_beam_groups", Value::Null),
    ("diversity_penalty", Value::Null),
    ("constraints", Value::Null),
    ("force_words_ids", Value::Null),
    ("penalty_alpha", Value::Null),
    ("dola_layers", Value::Null),
    ("token_healing", Value::Bool(false)),
    ("watermarking_config", Value::Null),
];

/// Keys of the reference that do not affect the result here. They say what to return, how to compute it, or who wrote
/// the file.
const WITHOUT_EFFECT: [&str; 33] = [
    "_commit_hash",
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "generation_kwargs",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "return_dict_in_generate",
    "return_legacy_cache",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
    "use_model_defaults",
];

impl GenerationConfig {
    /// Returns warnings about unknown keys, and about options that have no effect because another option is not set.
    pub fn warnings(&self) -> Vec<GenerationWarning> {
        let is_known = |key: &str| WITHOUT_EFFECT.contains(&key) || UNSUPPORTED.iter().any(|(known, _)| *known == key);
        let unknown = self.other.keys().filter(|key| !is_known(key));
        let mut warnings: Vec<_> = unknown.map(|key| GenerationWarning::UnknownKey { key: key.clone() }).collect();
        let mut idle = |needs, options: &[(&'static str, bool)]| {
            let given = options.iter().filter(|(_, given)| *given);
            warnings.extend(given.map(|&(option, _)| GenerationWarning::Idle { option, needs }));
        };
        if !self.do_sample() {
            idle(
                "do_sample",
                &[
                    ("temperature", self.temperature() != 1.0),
                    ("top_h", self.top_h.is_some()),
                    ("top_k", self.top_k() != 50),
                    ("top_p", self.top_p() != 1.0),
                    ("min_p", self.min_p.is_some()),
                    ("typical_p", self.typical_p() != 1.0),
                    ("epsilon_cutoff", self.epsilon_cutoff() != 0.0),
                    ("eta_cutoff", self.eta_cutoff() != 0.0),
                ],
            );
        }
        if self.num_beams() == 1 {
            idle(
                "num_beams",
                &[("early_stopping", self.early_stopping.is_some()), ("length_penalty", self.length_penalty.is_some())],
            );
        }
        warnings
    }

    /// Removes unsupported options, and token ids not less than `vocab_size`, from the options of a model folder.
    /// Returns a warning for each removal.
    pub fn drop_unsupported(&mut self, vocab_size: usize) -> Vec<GenerationWarning> {
        let mut warnings = Vec::new();
        while let Err(GenerationError::Unsupported { option, value, .. }) = self.check_supported() {
            self.other.remove(option);
            warnings.push(GenerationWarning::Unsupported { option, value });
        }
        let is_known = |id: &u32| (*id as usize) < vocab_size;
        let mut note = |option, dropped: bool| {
            if dropped {
                warnings.push(GenerationWarning::TokenIds { option, vocab_size });
            }
        };
        note("sequence_bias", retain_valid(&mut self.sequence_bias, |(sequence, _)| sequence.iter().all(is_known)));
        note("bad_words_ids", retain_valid(&mut self.bad_words_ids, |word| word.iter().all(is_known)));
        for (option, id) in
            [("forced_bos_token_id", &mut self.forced_bos_token_id), ("pad_token_id", &mut self.pad_token_id)]
        {
            note(option, id.take_if(|id| !is_known(id)).is_some());
        }
        for (option, ids) in
            [("eos_token_id", &mut self.eos_token_id), ("forced_eos_token_id", &mut self.forced_eos_token_id)]
        {
            let mut known = ids.as_ref().map(|ids| ids.as_slice().to_vec());
            if retain_valid(&mut known, is_known) {
                *ids = known.map(OneOrMany::Many);
                note(option, true);
            }
        }
        warnings
    }

    /// Rejects options whose effect is not implemented.
    pub(super) fn check_supported(&self) -> Result<(), GenerationError> {
        for (option, neutral) in UNSUPPORTED {
            let Some(value) = self.other.get(option) else { continue };
            let is_neutral = match option {
                "guidance_scale" | "num_beam_groups" => value.as_f64() == Some(1.0),
                "diversity_penalty" => value.as_f64() == Some(0.0),
                _ => *value == neutral,
            };
            if !value.is_null() && !is_neutral {
                let neutral = match option {
                    "guidance_scale" | "num_beam_groups" => json!(1),
                    "diversity_penalty" => json!(0),
                    _ => neutral,
                };
                return Err(GenerationError::Unsupported {
                    option,
                    value: value.to_string(),
                    neutral: neutral.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// Keeps the entries that satisfy `fits`. A list that becomes empty is replaced by `None`. Returns whether entries were
/// removed.
fn retain_valid<T>(list: &mut Option<Vec<T>>, fits: impl Fn(&T) -> bool) -> bool {
    let before = list.as_ref().map_or(0, Vec::len);
    if let Some(entries) = list {
        entries.retain(fits);
    }
    let after = list.as_ref().map_or(0, Vec::len);
    if before > 0 && after == 0 {
        *list = None;
    }
    after < before
}
