//! `generation_config.json`, and the options of one call laid over it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::config::{from_value, read_json};

/// New tokens where nothing says how many, as in the reference.
const DEFAULT_NEW_TOKENS: usize = 20;

/// Options of generation by their reference names. What is `None` is left to the model folder, then to the defaults.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Tokens to generate at most. Takes precedence over `max_length`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Tokens of a row at most, the padded prompt included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Tokens that end a row; they are kept in the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<EosTokenId>,
    /// What finished rows are filled with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Token sequences that are never generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_words_ids: Option<Vec<Vec<u32>>>,
    /// Every other key. Those that would change the result and are not implemented are refused by name.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One id or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EosTokenId {
    /// `2`
    One(u32),
    /// `[2, 32002]`
    Many(Vec<u32>),
}

impl EosTokenId {
    /// The ids.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// Why generation options cannot be followed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// An option that would change the result and is not implemented.
    #[error("`{option}` is {value}: not supported yet, only {neutral} is")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The value that changes nothing.
        neutral: String,
    },
    /// No token may be generated.
    #[error("`{option}` is {value}: no room for a token after a prompt of {prompt_tokens}")]
    NoRoom {
        /// The option.
        option: &'static str,
        /// Its value, in tokens.
        value: usize,
        /// Tokens of the longest prompt.
        prompt_tokens: usize,
    },
    /// Prompt and answer together would leave the context that the model was trained on.
    #[error(
        "a prompt of {prompt_tokens} tokens and an answer would reach {max_length} tokens, the model's context has \
         {context}; ask for fewer new tokens or shorten the prompt"
    )]
    Context {
        /// Tokens of the longest prompt.
        prompt_tokens: usize,
        /// Tokens at the end of the answer at most.
        max_length: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// An empty forbidden sequence.
    #[error("`bad_words_ids` holds an empty sequence")]
    EmptyBadWord,
    /// An id that the model cannot generate.
    #[error("`{option}` holds token id {id}, the model's vocabulary has {vocab_size}")]
    TokenId {
        /// The option.
        option: &'static str,
        /// The id.
        id: u32,
        /// Width of the logits.
        vocab_size: usize,
    },
}

/// The options of one call, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Slots of a row at most, the padded prompt included.
    pub(crate) max_length: usize,
    /// May be empty: then only the length ends a row.
    pub(crate) eos_token_ids: Vec<u32>,
    pub(crate) pad_token_id: u32,
    /// Each non-empty.
    pub(crate) bad_words_ids: Vec<Vec<u32>>,
}

impl GenerationConfig {
    /// The folder's own options: `generation_config.json`, or, where there is none, the ids in `config.json`.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::ModelFile`].
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("generation_config.json");
        if path.exists() {
            return from_value(&path, read_json(&path)?);
        }
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let text_config = config.get("text_config");
        let find = |key: &str| {
            let sections = [Some(&config), text_config].into_iter().flatten();
            sections.filter_map(|section| section.get(key)).find(|value| !value.is_null()).cloned()
        };
        let mut ids = Map::new();
        // Defaults of `MistralConfig`, and of `Idefics2Config` where there is no text section.
        ids.insert("eos_token_id".to_owned(), find("eos_token_id").unwrap_or(json!(2)));
        let pad = find("pad_token_id").or_else(|| text_config.is_none().then(|| json!(0)));
        ids.extend(pad.map(|pad| ("pad_token_id".to_owned(), pad)));
        from_value(&path, Value::Object(ids))
    }

    /// These options, and where they say nothing those of `base`.
    #[must_use]
    pub fn over(&self, base: &Self) -> Self {
        let mut other = base.other.clone();
        other.extend(self.other.clone());
        Self {
            max_new_tokens: self.max_new_tokens.or(base.max_new_tokens),
            max_length: self.max_length.or(base.max_length),
            eos_token_id: self.eos_token_id.clone().or_else(|| base.eos_token_id.clone()),
            pad_token_id: self.pad_token_id.or(base.pad_token_id),
            bad_words_ids: self.bad_words_ids.clone().or_else(|| base.bad_words_ids.clone()),
            other,
        }
    }

    /// Completes and checks the options for prompts of `prompt_tokens` slots and logits `vocab_size` wide.
    pub(crate) fn settle(&self, prompt_tokens: usize, vocab_size: usize) -> Result<Settings, GenerationError> {
        self.check_supported()?;
        let (option, value, max_length) = match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => ("max_new_tokens", new, prompt_tokens.saturating_add(new)),
            (None, Some(length)) => ("max_length", length, length),
            (None, None) => ("max_new_tokens", DEFAULT_NEW_TOKENS, prompt_tokens + DEFAULT_NEW_TOKENS),
        };
        if max_length <= prompt_tokens {
            return Err(GenerationError::NoRoom { option, value, prompt_tokens });
        }

        let eos_token_ids = self.eos_token_id.as_ref().map_or(&[][..], EosTokenId::ids).to_vec();
        let pad_token_id = self.pad_token_id.or_else(|| eos_token_ids.first().copied()).unwrap_or(0);
        let mut bad_words_ids = self.bad_words_ids.clone().unwrap_or_default();
        if bad_words_ids.iter().any(Vec::is_empty) {
            return Err(GenerationError::EmptyBadWord);
        }
        let check = |option, ids: &[u32]| match ids.iter().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(&id) => Err(GenerationError::TokenId { option, id, vocab_size }),
        };
        check("bad_words_ids", &bad_words_ids.concat())?;
        // A single end token may always come. Source: `NoBadWordsLogitsProcessor`.
        bad_words_ids.retain(|word| !matches!(word.as_slice(), [id] if eos_token_ids.contains(id)));
        Ok(Settings { max_length, eos_token_ids, pad_token_id, bad_words_ids })
    }

    /// Refuses options that would change the result and are not implemented; others mean nothing to greedy search.
    fn check_supported(&self) -> Result<(), GenerationError> {
        let neutral: [(&'static str, Value); 22] = [
            ("do_sample", json!(false)),
            ("num_beams", json!(1)),
            ("num_beam_groups", json!(1)),
            ("num_return_sequences", json!(1)),
            ("repetition_penalty", json!(1)),
            ("encoder_repetition_penalty", json!(1)),
            ("no_repeat_ngram_size", json!(0)),
            ("encoder_no_repeat_ngram_size", json!(0)),
            ("min_length", json!(0)),
            ("min_new_tokens", json!(0)),
            ("guidance_scale", json!(1)),
            ("sequence_bias", Value::Null),
            ("forced_bos_token_id", Value::Null),
            ("forced_eos_token_id", Value::Null),
            ("suppress_tokens", Value::Null),
            ("begin_suppress_tokens", Value::Null),
            ("exponential_decay_length_penalty", Value::Null),
            ("force_words_ids", Value::Null),
            ("stop_strings", Value::Null),
            ("max_time", Value::Null),
            ("penalty_alpha", Value::Null),
            ("watermarking_config", Value::Null),
        ];
        for (option, neutral) in neutral {
            let Some(value) = self.other.get(option) else { continue };
            let same = value == &neutral || value.as_f64().is_some_and(|value| neutral.as_f64() == Some(value));
            if !value.is_null() && !same {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> GenerationConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn lengths_follow_the_reference() {
        let max_length = |value| config(value).settle(7, 100).map(|settings| settings.max_length);
        assert_eq!(max_length(json!({})), Ok(27));
        assert_eq!(max_length(json!({"max_length": 9})), Ok(9));
        assert_eq!(max_length(json!({"max_length": 9, "max_new_tokens": 30})), Ok(37));
        assert!(matches!(max_length(json!({"max_length": 7})), Err(GenerationError::NoRoom { .. })));
        assert!(matches!(max_length(json!({"max_new_tokens": 0})), Err(GenerationError::NoRoom { .. })));
    }

    #[test]
    fn a_call_overrides_the_folder_key_by_key() {
        let folder =
            config(json!({"eos_token_id": [2, 9], "pad_token_id": 0, "bad_words_ids": [[5]], "do_sample": true}));
        let call = config(json!({"max_new_tokens": 3, "eos_token_id": 4, "do_sample": false}));
        let settings = call.over(&folder).settle(1, 100).unwrap();
        assert_eq!(
            settings,
            Settings { max_length: 4, eos_token_ids: vec![4], pad_token_id: 0, bad_words_ids: vec![vec![5]] }
        );
        assert!(matches!(folder.settle(1, 100), Err(GenerationError::Unsupported { option: "do_sample", .. })));
    }

    #[test]
    fn a_bad_word_that_is_an_end_token_is_dropped() {
        let settings =
            config(json!({"eos_token_id": [2], "bad_words_ids": [[2], [2, 3], [4]]})).settle(1, 100).unwrap();
        assert_eq!(settings.bad_words_ids, [vec![2, 3], vec![4]]);
        assert_eq!(settings.pad_token_id, 2);
        let too_large = config(json!({"bad_words_ids": [[100]]})).settle(1, 100);
        assert!(matches!(too_large, Err(GenerationError::TokenId { id: 100, .. })));
    }
}
