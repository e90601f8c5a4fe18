//! Options of generation by their reference names.

use std::num::NonZeroU32;

use clap::{Args, ValueEnum};
use idefics_generate::processor::image::Alpha;
use idefics_generate::processor::{Compatibility, ProcessOptions, SpecialTokensInText};
use idefics_generate::{CancelToken, Controls, DeviceLease, EarlyStopping, GenerationConfig, OneOrMany, Replays};
use serde::de::DeserializeOwned;

use super::{Global, from_one};
use crate::signals;

/// How prompts become tokens, and tokens text.
#[derive(Debug, Args)]
pub(crate) struct GenerationArgs {
    /// Tokens to generate at most [default: the model folder's, else 20].
    #[arg(long, value_name = "N", help_heading = "Length")]
    max_new_tokens: Option<usize>,
    /// Tokens of prompt and answer together at most.
    #[arg(long, value_name = "N", help_heading = "Length")]
    max_length: Option<usize>,
    /// Tokens of prompt and answer together at least.
    #[arg(long, value_name = "N", help_heading = "Length")]
    min_length: Option<usize>,
    /// Tokens to generate at least.
    #[arg(long, value_name = "N", help_heading = "Length")]
    min_new_tokens: Option<usize>,
    /// Text that ends an answer; may be repeated.
    #[arg(long, value_name = "TEXT", help_heading = "Length")]
    stop_strings: Option<Vec<String>>,
    /// Seconds after which an answer ends.
    #[arg(long, value_name = "SECONDS", help_heading = "Length")]
    max_time: Option<f64>,
    /// Draw tokens instead of taking the likeliest.
    #[arg(long, value_name = "BOOL", help_heading = "Strategy", num_args = 0..=1, default_missing_value = "true")]
    do_sample: Option<bool>,
    /// Beams of a beam search.
    #[arg(long, value_name = "N", help_heading = "Strategy")]
    num_beams: Option<usize>,
    /// Answers of each sample.
    #[arg(long, value_name = "N", help_heading = "Strategy")]
    num_return_sequences: Option<usize>,
    /// When beam search stops.
    #[arg(long, value_name = "true|false|never", help_heading = "Strategy", value_parser = json::<EarlyStopping>)]
    early_stopping: Option<EarlyStopping>,
    /// Exponent of an answer's length by which beam search divides its log-probability.
    #[arg(long, value_name = "X", help_heading = "Strategy", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Id that stands for an empty prompt.
    #[arg(long, value_name = "ID", help_heading = "Tokens")]
    bos_token_id: Option<u32>,
    /// Ids that end an answer.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    eos_token_id: Option<Vec<u32>>,
    /// Id that fills finished rows of a batch.
    #[arg(long, value_name = "ID", help_heading = "Tokens")]
    pad_token_id: Option<u32>,
    /// What is added to the score of a token that completes a sequence, as JSON.
    #[arg(long, value_name = "[[[ID,…],BIAS],…]", help_heading = "Tokens", value_parser = json::<Biases>)]
    sequence_bias: Option<Biases>,
    /// Factor in favor of tokens of the prompt.
    #[arg(long, value_name = "X", help_heading = "Tokens")]
    encoder_repetition_penalty: Option<f64>,
    /// Factor against tokens that came before.
    #[arg(long, value_name = "X", help_heading = "Tokens")]
    repetition_penalty: Option<f64>,
    /// Tokens of the n-grams that may not come twice.
    #[arg(long, value_name = "N", help_heading = "Tokens")]
    no_repeat_ngram_size: Option<usize>,
    /// Tokens of the prompt's n-grams that may not come again.
    #[arg(long, value_name = "N", help_heading = "Tokens")]
    encoder_no_repeat_ngram_size: Option<usize>,
    /// Token sequences that are never generated, as JSON.
    #[arg(long, value_name = "[[ID,…],…]", help_heading = "Tokens", value_parser = json::<BadWords>)]
    bad_words_ids: Option<BadWords>,
    /// The token after a prompt of one token.
    #[arg(long, value_name = "ID", help_heading = "Tokens")]
    forced_bos_token_id: Option<u32>,
    /// Tokens allowed as the last before the length limit.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    forced_eos_token_id: Option<Vec<u32>>,
    /// Make scores finite that are not.
    #[arg(long, value_name = "BOOL", help_heading = "Tokens", num_args = 0..=1, default_missing_value = "true")]
    remove_invalid_values: Option<bool>,
    /// After START tokens make end tokens likelier by FACTOR with each one, as JSON.
    #[arg(long, value_name = "[START,FACTOR]", help_heading = "Tokens", value_parser = json::<Decay>)]
    exponential_decay_length_penalty: Option<Decay>,
    /// Tokens that never come.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    suppress_tokens: Option<Vec<u32>>,
    /// Tokens that never come first.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    begin_suppress_tokens: Option<Vec<u32>>,
    /// Make scores log-probabilities again after all processors.
    #[arg(long, value_name = "BOOL", help_heading = "Tokens", num_args = 0..=1, default_missing_value = "true")]
    renormalize_logits: Option<bool>,
    /// Divides the scores.
    #[arg(long, value_name = "X", help_heading = "Draws, with --do-sample")]
    temperature: Option<f64>,
    /// Share of the entropy.
    #[arg(long, value_name = "X", help_heading = "Draws, with --do-sample")]
    top_h: Option<f64>,
    /// Likeliest tokens that may come; 0 for all [default: 50].
    #[arg(long, value_name = "N", help_heading = "Draws, with --do-sample")]
    top_k: Option<usize>,
    /// Probability of the likeliest tokens that may come.
    #[arg(long, value_name = "P", help_heading = "Draws, with --do-sample")]
    top_p: Option<f64>,
    /// Least ratio to the greatest probability.
    #[arg(long, value_name = "P", help_heading = "Draws, with --do-sample")]
    min_p: Option<f64>,
    /// Probability of the typical tokens that may come.
    #[arg(long, value_name = "P", help_heading = "Draws, with --do-sample")]
    typical_p: Option<f64>,
    /// Least probability.
    #[arg(long, value_name = "P", help_heading = "Draws, with --do-sample")]
    epsilon_cutoff: Option<f64>,
    /// Least probability where the model is sure.
    #[arg(long, value_name = "P", help_heading = "Draws, with --do-sample")]
    eta_cutoff: Option<f64>,
    /// With --json, the log-probability of each token and of the N likeliest alternatives.
    #[arg(long, value_name = "N", help_heading = "Output")]
    logprobs: Option<usize>,
    /// With --json, the log-probability of each prompt token.
    #[arg(long, help_heading = "Output")]
    prompt_logprobs: bool,
    #[command(flatten)]
    process: ProcessArgs,
}

/// How samples become tokens and pixels.
#[derive(Debug, Args)]
struct ProcessArgs {
    /// Whether each image is also shown as its four quarters [default: the model folder's].
    #[arg(long, value_name = "BOOL", help_heading = "Preprocessing")]
    do_image_splitting: Option<bool>,
    /// What becomes of transparent pixels.
    #[arg(long, value_enum, default_value_t = AlphaArg::White, help_heading = "Preprocessing")]
    alpha: AlphaArg,
    /// Page of pictures that have several, such as TIFF files, from 1 [default: 1].
    #[arg(long, value_name = "N", help_heading = "Preprocessing", value_parser = from_one::<NonZeroU32>)]
    page: Option<NonZeroU32>,
    /// What `<image>` and other special tokens mean in the text of messages.
    #[arg(long, value_enum, default_value_t = SpecialArg::Literal, help_heading = "Preprocessing")]
    special_tokens_in_text: SpecialArg,
    /// Which release of Transformers the token ids follow.
    #[arg(long, value_enum, default_value_t = CompatibilityArg::Transformers5, help_heading = "Preprocessing")]
    compatibility: CompatibilityArg,
    /// For prompt lists: whether `<end_of_utterance>` is put between texts that follow one another [default: whether
    /// the tokenizer has it].
    #[arg(long, value_name = "BOOL", help_heading = "Preprocessing")]
    add_end_of_utterance_token: Option<bool>,
    /// For the first Idefics: end prompts with `</s>`.
    #[arg(long, help_heading = "Preprocessing")]
    add_eos_token: bool,
}

type BadWords = Vec<Vec<u32>>;
type Biases = Vec<(Vec<u32>, f32)>;
type Decay = (usize, f64);

/// A value as `generation_config.json` has it; a bare word is a string.
fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let value = serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.to_owned()));
    serde_json::from_value(value).map_err(|_| "it is not JSON of that form".to_owned())
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AlphaArg {
    /// Laid over white: what a person sees.
    White,
    /// Dropped, as Transformers' file loader does.
    Drop,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SpecialArg {
    /// Ordinary text.
    Literal,
    /// Special tokens.
    Parse,
    /// An error.
    Reject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompatibilityArg {
    /// Tokenizers of Llama classes are rebuilt, a space follows an image.
    Transformers5,
    /// tokenizer.json as it is.
    Transformers4,
}

impl GenerationArgs {
    /// What the call says about generation.
    pub(crate) fn options(&self) -> GenerationConfig {
        GenerationConfig {
            max_new_tokens: self.max_new_tokens,
            max_length: self.max_length,
            min_length: self.min_length,
            min_new_tokens: self.min_new_tokens,
            stop_strings: self.stop_strings.clone().map(OneOrMany::Many),
            max_time: self.max_time,
            do_sample: self.do_sample,
            num_beams: self.num_beams,
            num_return_sequences: self.num_return_sequences,
            early_stopping: self.early_stopping,
            length_penalty: self.length_penalty,
            bos_token_id: self.bos_token_id,
            eos_token_id: self.eos_token_id.clone().map(OneOrMany::Many),
            pad_token_id: self.pad_token_id,
            sequence_bias: self.sequence_bias.clone(),
            encoder_repetition_penalty: self.encoder_repetition_penalty,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            encoder_no_repeat_ngram_size: self.encoder_no_repeat_ngram_size,
            bad_words_ids: self.bad_words_ids.clone(),
            forced_bos_token_id: self.forced_bos_token_id,
            forced_eos_token_id: self.forced_eos_token_id.clone().map(OneOrMany::Many),
            remove_invalid_values: self.remove_invalid_values,
            exponential_decay_length_penalty: self.exponential_decay_length_penalty,
            suppress_tokens: self.suppress_tokens.clone(),
            begin_suppress_tokens: self.begin_suppress_tokens.clone(),
            temperature: self.temperature,
            top_h: self.top_h,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            epsilon_cutoff: self.epsilon_cutoff,
            eta_cutoff: self.eta_cutoff,
            renormalize_logits: self.renormalize_logits,
            ..GenerationConfig::default()
        }
    }

    /// The options of generation that the call gives, by their names.
    pub(crate) fn given(&self) -> Vec<String> {
        let options = serde_json::to_value(self.options()).unwrap_or_default();
        let mut given: Vec<String> =
            options.as_object().into_iter().flat_map(|options| options.keys().cloned()).collect();
        given.extend(self.logprobs.map(|_| "logprobs".to_owned()));
        given.extend(self.prompt_logprobs.then(|| "prompt_logprobs".to_owned()));
        given
    }

    /// What the call says about preprocessing.
    pub(crate) fn process(&self, global: &Global) -> ProcessOptions {
        ProcessOptions {
            limits: global.image_limits(),
            cancel: Some(signals::cancel().flag()),
            ..self.process.options()
        }
    }

    /// What the call says besides. With a lease, steps of long answers are replayed.
    pub(crate) fn controls<'a>(
        &self,
        global: &Global,
        lease: Option<&'a DeviceLease>,
        cancel: &CancelToken,
    ) -> Controls<'a> {
        Controls {
            cancel: cancel.clone(),
            seed: global.seed,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            replays: lease.map_or(Replays::Never, Replays::WhenLong),
            ..Controls::default()
        }
    }
}

impl ProcessArgs {
    fn options(&self) -> ProcessOptions {
        ProcessOptions {
            do_image_splitting: self.do_image_splitting,
            alpha: match self.alpha {
                AlphaArg::White => Alpha::White,
                AlphaArg::Drop => Alpha::Drop,
            },
            page: self.page,
            special_tokens_in_text: match self.special_tokens_in_text {
                SpecialArg::Literal => SpecialTokensInText::Literal,
                SpecialArg::Parse => SpecialTokensInText::Parse,
                SpecialArg::Reject => SpecialTokensInText::Reject,
            },
            compatibility: match self.compatibility {
                CompatibilityArg::Transformers5 => Compatibility::Transformers5,
                CompatibilityArg::Transformers4 => Compatibility::Transformers4,
            },
            add_end_of_utterance_token: self.add_end_of_utterance_token,
            add_eos_token: self.add_eos_token,
            ..ProcessOptions::default()
        }
    }
}
