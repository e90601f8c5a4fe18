//! Validation of options.

use std::path::Path;

use burn::tensor::DType;
use idefics_text::TextConfig;

use super::{DEFAULT_NEW_TOKENS, GenerationConfig, GenerationError};
use crate::Error;

/// Maximum memory for the beams or answers of one sample, in bytes: enough for 16 beams with 4096 tokens of the 8B
/// model in f32. The caller decides how many samples run together.
const SAMPLE_BYTES: f64 = (16_u64 << 30) as f64;

impl GenerationConfig {
    /// Completes and checks the options for prompts of `prompt_tokens` slots and logits of width `vocab_size`. In the
    /// result, `max_length` is set and `max_new_tokens` is not.
    pub(crate) fn resolve(&self, prompt_tokens: usize, vocab_size: usize) -> Result<Self, GenerationError> {
        self.check_supported()?;
        let (option, value, max_length) = match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => ("max_new_tokens", new, prompt_tokens.saturating_add(new)),
            (None, Some(length)) => ("max_length", length, length),
            (None, None) => ("max_new_tokens", DEFAULT_NEW_TOKENS, prompt_tokens + DEFAULT_NEW_TOKENS),
        };
        if max_length <= prompt_tokens {
            return Err(GenerationError::NoRoom { option, value, prompt_tokens });
        }
        let resolved = Self { max_new_tokens: None, max_length: Some(max_length), ..self.clone() };
        resolved.validate()?;
        resolved.check_vocab(vocab_size)?;
        Ok(resolved)
    }

    /// Rejects [resolved](GenerationConfig::resolve) options whose beams or answers per sample exceed the memory limit.
    /// The memory grows with the square of their number. A single answer within the context length that the model was
    /// trained on is always allowed.
    pub(crate) fn check_memory(&self, prompt_tokens: usize, text_config: &TextConfig) -> Result<(), GenerationError> {
        let (option, value) = match (self.num_beams(), self.num_return_sequences()) {
            (beams @ 2.., _) => ("num_beams", beams),
            (_, answers @ 2..) => ("num_return_sequences", answers),
            _ if self.max_length() <= text_config.max_position_embeddings => return Ok(()),
            _ => ("max_length", self.max_length()),
        };
        let max_new_tokens = self.max_length().saturating_sub(prompt_tokens);
        // Computed in f64, which cannot overflow here, whatever the options are.
        let f32_bytes = DType::F32.size() as f64;
        let rows = self.num_beams().max(self.num_return_sequences()).max(1) as f64;
        let slots = prompt_tokens as f64 + rows * max_new_tokens as f64;
        let cache = slots * text_config.cache_bytes(1, 1, DType::F32) as f64;
        let attention = rows * slots * text_config.num_attention_heads as f64 * f32_bytes; // of one layer
        let logits = rows * text_config.vocab_size as f64 * f32_bytes;
        let needed = cache + attention + logits;
        if needed > SAMPLE_BYTES {
            let gib = |bytes: f64| bytes / (1_u64 << 30) as f64;
            let (needed, limit) = (gib(needed), gib(SAMPLE_BYTES));
            return Err(GenerationError::Memory { option, value, max_new_tokens, needed, limit });
        }
        Ok(())
    }

    /// Validates these options on top of those of a model folder; see [`validate`](GenerationConfig::validate). If the
    /// option at fault is not set here, the error names the folder's file.
    ///
    /// # Errors
    /// [`Error::Generation`], [`Error::FolderOption`], or an error of [`GenerationConfig::from_folder`].
    pub fn validate_with_folder(&self, folder: &Path) -> Result<(), Error> {
        let together = self.over(&Self::from_folder(folder)?);
        together.validate().map_err(|error| self.blame(error, folder))
    }

    /// Converts an error. If `self` sets none of the options at fault, the result names the file of the folder.
    pub(crate) fn blame(&self, error: GenerationError, folder: &Path) -> Error {
        let given = serde_json::to_value(self).unwrap_or_default();
        let is_given = error.options().any(|option| given.get(option).is_some());
        match is_given {
            true => Error::Generation(error),
            false => Error::FolderOption { path: folder.join("generation_config.json"), source: error },
        }
    }

    /// Rejects invalid values and combinations: all that the reference rejects, and probabilities out of range, which
    /// the reference silently ignores. Sampling options are checked only with `do_sample`.
    ///
    /// # Errors
    /// [`GenerationError::OutOfRange`], [`GenerationError::Conflict`], [`GenerationError::Empty`].
    ///
    /// Source: `GenerationConfig.validate` and the constructors in `logits_process.py`.
    pub fn validate(&self) -> Result<(), GenerationError> {
        let count = |option, value: usize| in_range(option, value as f64, value > 0, "at least 1");
        let factor =
            |option, value: f64| in_range(option, value, value > 0.0 && value.is_finite(), "a finite number above 0");
        count("num_beams", self.num_beams())?;
        count("num_return_sequences", self.num_return_sequences())?;
        count("max_length", self.max_length())?;
        count("max_new_tokens", self.max_new_tokens.unwrap_or(1))?;
        let length_penalty = self.length_penalty();
        in_range("length_penalty", length_penalty, length_penalty.is_finite(), "a finite number")?;
        factor("repetition_penalty", self.repetition_penalty())?;
        factor("encoder_repetition_penalty", self.encoder_repetition_penalty())?;
        if let Some((_, decay)) = self.exponential_decay_length_penalty {
            in_range("exponential_decay_length_penalty", decay, decay.is_finite(), "a finite factor")?;
        }
        if let Some(seconds) = self.max_time {
            in_range("max_time", seconds, seconds >= 0.0, "a number of seconds, 0 or more")?;
        }
        self.validate_lists()?;
        self.validate_combinations()?;
        if self.do_sample() { self.validate_filters() } else { Ok(()) }
    }

    fn validate_filters(&self) -> Result<(), GenerationError> {
        let temperature = self.temperature();
        in_range("temperature", temperature, temperature > 0.0 && temperature.is_finite(), "a finite number above 0")?;
        for (option, share) in [("top_h", self.top_h), ("typical_p", Some(self.typical_p()))] {
            let share = share.unwrap_or(1.0);
            in_range(option, share, 0.0 < share && share <= 1.0, "above 0 and at most 1")?;
        }
        for (option, probability) in [("top_p", self.top_p()), ("min_p", self.min_p.unwrap_or(0.0))] {
            in_range(option, probability, (0.0..=1.0).contains(&probability), "from 0 to 1")?;
        }
        for (option, cutoff) in [("epsilon_cutoff", self.epsilon_cutoff()), ("eta_cutoff", self.eta_cutoff())] {
            in_range(option, cutoff, (0.0..1.0).contains(&cutoff), "from 0 to below 1")?;
        }
        Ok(())
    }

    fn validate_lists(&self) -> Result<(), GenerationError> {
        let bad_words = self.bad_words_ids.as_ref();
        let biases = self.sequence_bias.as_ref();
        let stop_strings = self.stop_strings.iter().flat_map(|stop| stop.as_slice());
        let is_empty = [
            ("bad_words_ids", bad_words.is_some_and(|words| words.is_empty() || words.iter().any(Vec::is_empty))),
            (
                "sequence_bias",
                biases
                    .is_some_and(|biases| biases.is_empty() || biases.iter().any(|(sequence, _)| sequence.is_empty())),
            ),
            ("stop_strings", stop_strings.clone().any(String::is_empty)),
        ];
        match is_empty.into_iter().find(|(_, is_empty)| *is_empty) {
            Some((option, _)) => Err(GenerationError::Empty { option }),
            None => Ok(()),
        }
    }

    fn validate_combinations(&self) -> Result<(), GenerationError> {
        let conflict = |option, other, reason| Err(GenerationError::Conflict { option, other, reason });
        let (num_beams, answers) = (self.num_beams(), self.num_return_sequences());
        if answers > 1 && num_beams == 1 && !self.do_sample() {
            let expected =
                "1 in greedy search; several answers need `do_sample`, or `num_beams` of at least this number";
            return in_range("num_return_sequences", answers as f64, false, expected);
        }
        if num_beams > 1 && answers > num_beams {
            return conflict("num_return_sequences", "num_beams", "there cannot be more answers than beams");
        }
        if self.exponential_decay_length_penalty.is_some() && self.eos_token_ids().is_empty() {
            return conflict("exponential_decay_length_penalty", "eos_token_id", "there is no end token to favour");
        }
        let suppressed = self.suppress_tokens.as_deref().unwrap_or_default();
        let forced_bos: &[u32] = self.forced_bos_token_id.as_slice();
        for (option, forced) in
            [("forced_bos_token_id", forced_bos), ("forced_eos_token_id", self.forced_eos_token_ids())]
        {
            if !forced.is_empty() && forced.iter().all(|id| suppressed.contains(id)) {
                return conflict(option, "suppress_tokens", "every forced token is suppressed");
            }
        }
        Ok(())
    }

    /// Rejects token ids that are not less than `vocab_size`; the reference would fail with them. An end token may be
    /// outside the vocabulary, unless `exponential_decay_length_penalty` changes its score, or it is the filler of
    /// finished rows.
    ///
    /// # Errors
    /// [`GenerationError::TokenId`].
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), GenerationError> {
        let check = |option, ids: &[u32]| match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(&id) => Err(GenerationError::TokenId { option, id, vocab_size }),
        };
        for (sequence, _) in self.sequence_bias.iter().flatten() {
            check("sequence_bias", sequence)?;
        }
        for word in self.bad_words_ids.iter().flatten() {
            check("bad_words_ids", word)?;
        }
        check("forced_bos_token_id", self.forced_bos_token_id.as_slice())?;
        check("forced_eos_token_id", self.forced_eos_token_ids())?;
        if self.exponential_decay_length_penalty.is_some() {
            check("eos_token_id", self.eos_token_ids())?;
        }
        // The filler of finished rows is fed to the model as long as other rows run.
        let from = if self.pad_token_id.is_some() { "pad_token_id" } else { "eos_token_id" };
        check(from, &[self.fill_token_id()])
    }
}

fn in_range(option: &'static str, value: f64, is_allowed: bool, expected: &'static str) -> Result<(), GenerationError> {
    if is_allowed { Ok(()) } else { Err(GenerationError::OutOfRange { option, value, expected }) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{GenerationWarning, OneOrMany};
    use super::*;
    use crate::ErrorKind;

    fn config(value: Value) -> GenerationConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn lengths_match_reference() {
        let max_length = |value| config(value).resolve(7, 100).map(|resolved| resolved.max_length());
        assert_eq!(max_length(json!({})), Ok(27));
        assert_eq!(max_length(json!({"max_length": 9})), Ok(9));
        assert_eq!(max_length(json!({"max_length": 9, "max_new_tokens": 30})), Ok(37));
        assert!(matches!(max_length(json!({"max_length": 7})), Err(GenerationError::NoRoom { .. })));
        assert!(matches!(max_length(json!({"max_new_tokens": 0})), Err(GenerationError::NoRoom { .. })));
    }

    #[test]
    fn call_overrides_folder_per_key() {
        let folder = config(json!({"eos_token_id": [2, 9], "pad_token_id": 0, "bad_words_ids": [[5]],
            "guidance_scale": 2.0, "temperature": 0.5}));
        let call = config(json!({"max_new_tokens": 3, "eos_token_id": 4, "guidance_scale": 1, "temperature": null}));
        let resolved = call.over(&folder).resolve(1, 100).unwrap();
        assert_eq!((resolved.max_length, resolved.max_new_tokens), (Some(4), None));
        assert_eq!((resolved.eos_token_ids(), resolved.pad_token_id), ([4].as_slice(), Some(0)));
        assert_eq!((resolved.bad_words_ids.unwrap(), resolved.temperature), (vec![vec![5]], Some(0.5)));
        let refused = folder.resolve(1, 100);
        assert!(matches!(refused, Err(GenerationError::Unsupported { option: "guidance_scale", .. })));
    }

    #[test]
    fn warns_about_unknown_keys_and_options_without_effect() {
        let warnings = |value| config(value).warnings().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            warnings(json!({"tempreature": 0.1, "use_cache": true, "transformers_version": "5"})),
            ["`tempreature` is not a generation option and is ignored"]
        );
        assert_eq!(warnings(json!({"top_p": 0.9})), ["`top_p` has no effect without `do_sample`"]);
        assert_eq!(warnings(json!({"length_penalty": 2})), ["`length_penalty` has no effect without `num_beams`"]);
        assert!(warnings(json!({"do_sample": true, "top_p": 0.9, "num_beams": 2, "length_penalty": 2})).is_empty());
    }

    #[test]
    fn rejects_more_rows_than_fit_in_memory() {
        let text_config = TextConfig::mistral_7b();
        let check = |value| config(value).resolve(500, 32_003).unwrap().check_memory(500, &text_config);
        assert_eq!(check(json!({"num_beams": 16, "max_new_tokens": 1000})), Ok(()));
        assert_eq!(
            check(json!({"max_length": text_config.max_position_embeddings})),
            Ok(()),
            "a single answer within the trained context is always allowed"
        );
        for (value, expected) in [
            (json!({"num_beams": 100_000}), ("num_beams", 100_000, 20)),
            (json!({"num_beams": usize::MAX, "num_return_sequences": 2}), ("num_beams", usize::MAX, 20)),
            (json!({"num_beams": 64, "max_new_tokens": 2000}), ("num_beams", 64, 2000)),
            (
                json!({"do_sample": true, "num_return_sequences": usize::MAX, "max_length": 1000}),
                ("num_return_sequences", usize::MAX, 500),
            ),
            (json!({"max_new_tokens": usize::MAX}), ("max_length", usize::MAX, usize::MAX - 500)),
            (json!({"max_new_tokens": 1_000_000}), ("max_length", 1_000_500, 1_000_000)),
        ] {
            match check(value) {
                Err(GenerationError::Memory { option, value, max_new_tokens, needed, limit }) => {
                    assert_eq!((option, value, max_new_tokens), expected);
                    assert!(needed.is_finite() && needed > limit);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn filler_must_be_in_the_vocabulary() {
        let check = |value: Value| config(value).resolve(7, 100).map(|_| ());
        let outside = |option, id| Err(GenerationError::TokenId { option, id, vocab_size: 100 });
        assert_eq!(check(json!({"pad_token_id": 100, "eos_token_id": 2})), outside("pad_token_id", 100));
        assert_eq!(check(json!({"eos_token_id": [100, 2]})), outside("eos_token_id", 100));
        // An end token that is not the filler may be outside the vocabulary.
        assert_eq!(check(json!({"eos_token_id": [2, 100]})), Ok(()));
        assert_eq!(check(json!({"pad_token_id": 99, "eos_token_id": 100})), Ok(()));
    }

    #[test]
    fn pad_token_of_the_folder_outside_the_vocabulary_is_dropped() {
        let mut folder = config(json!({"pad_token_id": 100, "eos_token_id": 2}));
        let warnings = folder.drop_unsupported(100);
        assert_eq!(warnings, [GenerationWarning::TokenIds { option: "pad_token_id", vocab_size: 100 }]);
        assert_eq!((folder.pad_token_id, folder.fill_token_id()), (None, 2));
        assert!(folder.drop_unsupported(100).is_empty());
    }

    #[test]
    fn rejects_empty_stop_string() {
        let stop = GenerationConfig { stop_strings: Some(OneOrMany::One(String::new())), ..Default::default() };
        assert_eq!(stop.validate(), Err(GenerationError::Empty { option: "stop_strings" }));
    }

    #[test]
    fn folder_is_blamed_for_its_own_options() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |in_folder: Value, call: Value| {
            std::fs::write(folder.path().join("generation_config.json"), in_folder.to_string()).unwrap();
            config(call).validate_with_folder(folder.path()).map_err(|error| (error.kind(), error.to_string()))
        };
        for in_folder in [
            json!({"num_beams": 0}),
            json!({"repetition_penalty": -1.5}),
            json!({"do_sample": true, "temperature": 0}),
            json!({"max_new_tokens": 0}),
            json!({"num_return_sequences": 3}),
            json!({"bad_words_ids": [[]]}),
        ] {
            let (kind, message) = refused(in_folder.clone(), json!({})).unwrap_err();
            assert_eq!(kind, ErrorKind::Model, "{message}");
            assert!(message.contains("generation_config.json: `"), "{message}");
            let option = in_folder.as_object().unwrap().keys().next_back().unwrap();
            assert!(message.contains(&format!("`{option}`")), "{message}");
        }
        let (kind, message) = refused(json!({"do_sample": true}), json!({"temperature": -1})).unwrap_err();
        assert!(kind == ErrorKind::Usage && !message.contains("generation_config.json"), "{message}");
        assert_eq!(refused(json!({"num_beams": 0}), json!({"num_beams": 2})), Ok(()), "the call overrides the folder");
    }

    #[test]
    fn saved_options_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let written = config(json!({"num_beams": 3, "early_stopping": "never", "stop_strings": "User:",
            "sequence_bias": [[[4, 5], -2.5]], "exponential_decay_length_penalty": [3, 1.5], "foo": {"bar": 1}}));
        written.save(folder.path()).unwrap();
        assert_eq!(GenerationConfig::from_folder(folder.path()).unwrap(), written);
    }

    #[test]
    fn saving_replaces_the_file_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("generation_config.json"), folder.path().join("old.json"));
        config(json!({"num_beams": 3})).save(folder.path()).unwrap();
        std::fs::hard_link(&path, &old).unwrap();
        config(json!({"num_beams": 4})).save(folder.path()).unwrap();
        assert!(std::fs::read_to_string(&old).unwrap().contains('3'), "the old file is not written to");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
        let error = config(json!({})).save(&folder.path().join("missing")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileSystem, "{error}");
    }
}
