//! `generation_config.json`, and the options of one call laid over it.

mod check;
mod error;
mod known;
mod values;

use std::path::Path;

use idefics_checkpoint::gguf::ModelFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{from_value, read_json};
use crate::logits::ProcessorChain;
use crate::{Error, folder};

pub use error::{GenerationError, GenerationWarning};
pub use values::{EarlyStopping, EosTokenId, OneOrMany};

/// New tokens where nothing says how many, as in the reference.
const DEFAULT_NEW_TOKENS: usize = 20;

/// Declares the options: a field each, laid over the model folder's by [`GenerationConfig::over`].
macro_rules! generation_config {
    ($($(#[$doc:meta])* $field:ident: $type:ty,)*) => {
        /// Options of generation by their reference names. What is `None` is left to the model folder, then to the
        /// defaults.
        ///
        /// Source: `GenerationConfig`.
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct GenerationConfig {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
            /// Every other key. Those that would change the result and are not implemented are refused by name; see
            /// [`GenerationConfig::warnings`] for what is not known at all.
            #[serde(flatten)]
            pub other: Map<String, Value>,
        }

        impl GenerationConfig {
            /// These options, and where they say nothing those of `base`.
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
    /// Tokens to generate at most. Takes precedence over `max_length`.
    max_new_tokens: usize,
    /// Slots of a row at most, left padding and prompt included.
    max_length: usize,
    /// Slots of a row at least. Means nothing where `min_new_tokens` is given, as in the reference.
    min_length: usize,
    /// Tokens of the answer at least.
    min_new_tokens: usize,
    /// Texts that end an answer; they are kept in the output.
    stop_strings: OneOrMany<String>,
    /// Seconds after which every answer ends with its next token.
    max_time: f64,
    /// Whether tokens are drawn; otherwise the likeliest comes.
    do_sample: bool,
    /// Beams of each sample; 1 for none.
    num_beams: usize,
    /// Answers of each sample.
    num_return_sequences: usize,
    /// When beam search stops.
    early_stopping: EarlyStopping,
    /// Beam search divides the log-probability of an answer by its tokens to this power: above 0 favors long answers.
    length_penalty: f64,
    /// The token that stands for a prompt without tokens. Tokenizers that begin every text with `<s>` make none.
    bos_token_id: u32,
    /// Tokens that end a row; they are kept in the output.
    eos_token_id: EosTokenId,
    /// What finished rows are filled with.
    pad_token_id: u32,
    /// Biases by token sequence, in units of the scores.
    sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Factor above 0 against tokens of the prompt; 1 changes nothing.
    encoder_repetition_penalty: f64,
    /// Factor above 0 against tokens of prompt and answer; 1 changes nothing.
    repetition_penalty: f64,
    /// Tokens of the n-grams that may not come twice; 0 for none.
    no_repeat_ngram_size: usize,
    /// Tokens of the prompt's n-grams that may not come again; 0 for none.
    encoder_no_repeat_ngram_size: usize,
    /// Token sequences that are never generated.
    bad_words_ids: Vec<Vec<u32>>,
    /// The token after a prompt of one slot.
    forced_bos_token_id: u32,
    /// The tokens allowed in the last slot before `max_length`; empty for no force.
    forced_eos_token_id: EosTokenId,
    /// Whether scores that are no finite numbers are made finite.
    remove_invalid_values: bool,
    /// Tokens of the answer that are left alone, and the factor by which end tokens gain with each one after.
    exponential_decay_length_penalty: (usize, f64),
    /// Tokens that never come.
    suppress_tokens: Vec<u32>,
    /// Tokens that never come first.
    begin_suppress_tokens: Vec<u32>,
    /// Divides the scores, above 0. This and what follows means something only with `do_sample`.
    temperature: f64,
    /// Share of the entropy, in `(0, 1]`.
    top_h: f64,
    /// The number of likeliest tokens that may come; 0 for all.
    top_k: usize,
    /// Probability of the likeliest tokens that may come, in `[0, 1]`.
    top_p: f64,
    /// Least ratio to the greatest probability, in `[0, 1]`.
    min_p: f64,
    /// Probability of the typical tokens that may come, in `(0, 1]`.
    typical_p: f64,
    /// Least probability, in `[0, 1)`; 0 changes nothing.
    epsilon_cutoff: f64,
    /// Least probability where the model is sure, in `[0, 1)`; 0 changes nothing.
    eta_cutoff: f64,
    /// Whether scores are made log-probabilities again at the end, with and without `do_sample`.
    renormalize_logits: bool,
}

/// The value of an option, or the reference's default.
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
    /// The folder's own options: `generation_config.json`, or, where there is none, the ids in `config.json`, or in the
    /// metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::ModelFile`], or [`Error::Checkpoint`] for a GGUF file that is not read.
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        if let Some((path, mut value)) = folder::in_metadata(folder, ModelFile::GenerationConfig)? {
            drop_missing_ids(&mut value);
            return from_value(&path, value);
        }
        let path = folder::beside(folder, "generation_config.json");
        if path.exists() {
            let mut value = read_json(&path)?;
            drop_missing_ids(&mut value);
            return from_value(&path, value);
        }
        let path = folder.join("config.json");
        let mut config = read_json(&path)?;
        config.get_mut("text_config").into_iter().for_each(drop_missing_ids);
        drop_missing_ids(&mut config);
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

    /// Writes `generation_config.json` into a folder: the options that say something, and every key that was read.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join("generation_config.json");
        let failed = |source| Error::Write { path: path.clone(), source };
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        text.push('\n');
        std::fs::write(&path, text).map_err(failed)
    }

    /// Tokens that end an answer; none where nothing says so.
    pub fn eos_token_ids(&self) -> &[u32] {
        self.eos_token_id.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// The tokens that are forced into the last slot; none where nothing says so.
    pub(crate) fn forced_eos_token_ids(&self) -> &[u32] {
        self.forced_eos_token_id.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// What finished rows are filled with: `pad_token_id`, or the first end token, or 0.
    pub(crate) fn filler(&self) -> u32 {
        self.pad_token_id.or_else(|| self.eos_token_ids().first().copied()).unwrap_or(0)
    }

    /// Whether greedy search needs no more than the likeliest token that is no bad word: then scores stay where they are.
    pub(crate) fn is_plain(&self) -> bool {
        let without_words = Self { bad_words_ids: None, ..self.clone() };
        ProcessorChain::new(&without_words).is_ok_and(|chain| !chain.needs_scores())
    }

    /// Whether each sample has one answer that grows a token at a time: what can be streamed.
    pub fn is_streamable(&self) -> bool {
        self.num_beams() == 1 && self.num_return_sequences() == 1
    }

    /// The least number of tokens that filters keep. Source: `_get_logits_processor`.
    pub(crate) fn min_tokens_to_keep(&self) -> usize {
        match self.num_beams() {
            0 | 1 => 1,
            _ if self.eos_token_ids().is_empty() => 2,
            _ => self.eos_token_ids().len() + 1,
        }
    }
}

/// Makes ids null that old converters write where there is no such token: -1. In lists they are left out.
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
