//! Generation options: those of `generation_config.json`, and those of a call, which override them.

mod check;
mod error;
mod known;
mod values;

use std::io::Write;
use std::path::Path;

use idefics_checkpoint::gguf::ModelFile;
use idefics_checkpoint::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{config_file, from_value, read_json};
use crate::logits::ProcessorChain;
use crate::{Error, folder};

pub use error::{GenerationError, GenerationWarning};
pub use values::{EarlyStopping, EosTokenId, OneOrMany};

/// Number of new tokens if no length option is set, as in the reference.
const DEFAULT_NEW_TOKENS: usize = 20;

/// Declares each option as a field of [`GenerationConfig`], and merges the options in [`GenerationConfig::over`].
macro_rules! generation_config {
    ($($(#[$doc:meta])* $field:ident: $type:ty,)*) => {
        /// Generation options, named as in the reference. An option that is `None` is taken from the model folder. If
        /// it is missing there too, it has the reference's default.
        ///
        /// Source: `GenerationConfig`.
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct GenerationConfig {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
            /// All other keys. Keys whose effect is not implemented are rejected by name; for unknown keys, see
            /// [`GenerationConfig::warnings`].
            #[serde(flatten)]
            pub other: Map<String, Value>,
        }

        impl GenerationConfig {
            /// Returns the options of `base`, overridden by those that are set in `self`.
            #[must_use]
            pub fn over(&self, base: &Self) -> Self {
                let mut other = base.other.clone();
                other.extend(self.other.clone());
                Self { $($field: self.$field.clone().or_else(|| base.$field.clone()),)* other }
            }
        }
    };
}

generation_config! {
    /// Maximum number of new tokens. Takes precedence over `max_length`.
    max_new_tokens: usize,
    /// Maximum number of slots in a row, including left padding and prompt.
    max_length: usize,
    /// Minimum number of slots in a row. Ignored if `min_new_tokens` is set, as in the reference.
    min_length: usize,
    /// Minimum number of new tokens.
    min_new_tokens: usize,
    /// Strings that end an answer. They are kept in the output.
    stop_strings: OneOrMany<String>,
    /// Time limit in seconds. When it has passed, every answer ends with its next token.
    max_time: f64,
    /// Whether to sample tokens; otherwise the most likely token is taken.
    do_sample: bool,
    /// Number of beams per sample. With 1 there is no beam search.
    num_beams: usize,
    /// Number of answers per sample.
    num_return_sequences: usize,
    /// When beam search stops.
    early_stopping: EarlyStopping,
    /// Exponent of the length penalty in beam search. The log-probability of an answer is divided by its number of
    /// tokens to this power, so values above 0 favour long answers.
    length_penalty: f64,
    /// Token that replaces an empty prompt. Tokenizers that begin every text with `<s>` never produce an empty prompt.
    bos_token_id: u32,
    /// Tokens that end a row. They are kept in the output.
    eos_token_id: EosTokenId,
    /// Token that fills up finished rows.
    pad_token_id: u32,
    /// Token sequences, each with a bias that is added to the scores.
    sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Factor above 0 that favours tokens of the prompt; 1 has no effect.
    encoder_repetition_penalty: f64,
    /// Factor above 0 that penalises tokens of prompt and answer; 1 has no effect.
    repetition_penalty: f64,
    /// Length of the n-grams that must not be repeated; 0 allows all.
    no_repeat_ngram_size: usize,
    /// Length of the prompt's n-grams that must not be repeated in the answer; 0 allows all.
    encoder_no_repeat_ngram_size: usize,
    /// Token sequences that are never generated.
    bad_words_ids: Vec<Vec<u32>>,
    /// Token that is forced after a prompt of one slot.
    forced_bos_token_id: u32,
    /// The only tokens that are allowed in the last slot before `max_length`; an empty list allows all.
    forced_eos_token_id: EosTokenId,
    /// Whether non-finite scores are replaced by finite ones.
    remove_invalid_values: bool,
    /// Number of new tokens before the penalty starts, and the factor by which end tokens become more likely with each
    /// further token.
    exponential_decay_length_penalty: (usize, f64),
    /// Tokens that are never generated.
    suppress_tokens: Vec<u32>,
    /// Tokens that are never generated as the first token of an answer.
    begin_suppress_tokens: Vec<u32>,
    /// Divisor of the scores, above 0. This option and those from `top_h` to `eta_cutoff` require `do_sample`.
    temperature: f64,
    /// Top-H filtering: fraction of the distribution's entropy to keep, in `(0, 1]`.
    top_h: f64,
    /// Number of most likely tokens to keep; 0 keeps all.
    top_k: usize,
    /// Total probability of the most likely tokens to keep, in `[0, 1]`.
    top_p: f64,
    /// Minimum probability of a token, relative to the most likely token, in `[0, 1]`.
    min_p: f64,
    /// Total probability of the typical tokens to keep, in `(0, 1]`.
    typical_p: f64,
    /// Minimum probability of a token, in `[0, 1)`; 0 keeps all tokens.
    epsilon_cutoff: f64,
    /// Eta cutoff: minimum probability of a token, which falls as the entropy rises, in `[0, 1)`; 0 keeps all tokens.
    eta_cutoff: f64,
    /// Whether the final scores are normalised to log-probabilities, with or without `do_sample`.
    renormalize_logits: bool,
}

/// Accessors that return an option or the reference's default.
macro_rules! defaults {
    ($($field:ident: $type:ty = $default:expr,)*) => {
        impl GenerationConfig {
            $(
                #[doc = concat!("`", stringify!($field), "`, or the reference's default.")]
                pub fn $field(&self) -> $type {
                    self.$field.unwrap_or($default)
                }
            )*
        }
    };
}

defaults! {
    max_length: usize = DEFAULT_NEW_TOKENS,
    min_length: usize = 0,
    do_sample: bool = false,
    num_beams: usize = 1,
    num_return_sequences: usize = 1,
    early_stopping: EarlyStopping = EarlyStopping::Heuristic,
    length_penalty: f64 = 1.0,
    encoder_repetition_penalty: f64 = 1.0,
    repetition_penalty: f64 = 1.0,
    no_repeat_ngram_size: usize = 0,
    encoder_no_repeat_ngram_size: usize = 0,
    remove_invalid_values: bool = false,
    temperature: f64 = 1.0,
    top_k: usize = 50,
    top_p: f64 = 1.0,
    typical_p: f64 = 1.0,
    epsilon_cutoff: f64 = 0.0,
    eta_cutoff: f64 = 0.0,
    renormalize_logits: bool = false,
}

impl GenerationConfig {
    /// Reads the options of a model folder from `generation_config.json` or the metadata of its GGUF file. If there are
    /// none, only the token ids are set, from `config.json`.
    ///
    /// # Errors
    /// [`Error::NoConfig`], [`Error::Read`], [`Error::ModelFile`], or [`Error::Checkpoint`] if a GGUF file is rejected.
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        if let Some((path, mut value)) = folder::in_metadata(folder, ModelFile::GenerationConfig)? {
            drop_missing_ids(&mut value);
            return from_value(&path, value);
        }
        let path = folder::sibling_path(folder, "generation_config.json");
        if path.exists() {
            let mut value = read_json(&path)?;
            drop_missing_ids(&mut value);
            return from_value(&path, value);
        }
        let path = config_file(folder)?;
        let mut config = read_json(&path)?;
        config.get_mut("text_config").into_iter().for_each(drop_missing_ids);
        drop_missing_ids(&mut config);
        let text_config = config.get("text_config");
        let find = |key: &str| {
            let sections = [Some(&config), text_config].into_iter().flatten();
            sections.filter_map(|section| section.get(key)).find(|value| !value.is_null()).cloned()
        };
        let mut ids = Map::new();
        // These are the defaults of `MistralConfig`, or of `Idefics2Config` if there is no text section.
        ids.insert("eos_token_id".to_owned(), find("eos_token_id").unwrap_or(json!(2)));
        let pad = find("pad_token_id").or_else(|| text_config.is_none().then(|| json!(0)));
        ids.extend(pad.map(|pad| ("pad_token_id".to_owned(), pad)));
        from_value(&path, Value::Object(ids))
    }

    /// Writes the options that are set, and all other keys, to `generation_config.json` in a folder. The file is
    /// written completely or not at all.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with [`CheckpointError::Write`](idefics_checkpoint::CheckpointError::Write).
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        Ok(write_atomically(&folder.join("generation_config.json"), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })?)
    }

    /// Returns the tokens that end an answer; empty if the option is not set.
    pub fn eos_token_ids(&self) -> &[u32] {
        self.eos_token_id.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// Returns the tokens that are forced into the last slot; empty if the option is not set.
    pub(crate) fn forced_eos_token_ids(&self) -> &[u32] {
        self.forced_eos_token_id.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// Returns the token that fills up finished rows: `pad_token_id`, or the first end token, or 0.
    pub(crate) fn fill_token_id(&self) -> u32 {
        self.pad_token_id.or_else(|| self.eos_token_ids().first().copied()).unwrap_or(0)
    }

    /// Returns whether the next token is simply the most likely one outside `bad_words_ids`, so that scores can stay on
    /// the device.
    pub(crate) fn is_plain(&self) -> bool {
        let without_words = Self { bad_words_ids: None, ..self.clone() };
        ProcessorChain::new(&without_words).is_ok_and(|chain| !chain.needs_scores())
    }

    /// Returns whether each sample has a single answer that is generated token by token, so that it can be streamed.
    pub fn is_streamable(&self) -> bool {
        self.num_beams() == 1 && self.num_return_sequences() == 1
    }

    /// Returns the minimum number of tokens that sampling filters must keep. Source: `_get_logits_processor`.
    pub(crate) fn min_tokens_to_keep(&self) -> usize {
        match self.num_beams() {
            0 | 1 => 1,
            _ if self.eos_token_ids().is_empty() => 2,
            _ => self.eos_token_ids().len() + 1,
        }
    }
}

/// Replaces negative token ids by null, and removes them from lists. Old converters write them for missing tokens.
fn drop_missing_ids(config: &mut Value) {
    let is_missing = |id: &Value| id.is_null() || id.as_i64().is_some_and(|id| id < 0);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"] {
        match config.get_mut(key) {
            Some(Value::Array(ids)) => ids.retain(|id| !is_missing(id)),
            Some(id) if is_missing(id) => *id = Value::Null,
            _ => {}
        }
    }
}
