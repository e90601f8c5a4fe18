//! Generation options, named as in Transformers' `GenerationConfig`.

use std::num::NonZeroU32;

use clap::{Args, ValueEnum};
use idefics_generate::processor::image::Alpha;
use idefics_generate::processor::{Compatibility, ProcessOptions, SpecialTokensInText};
use idefics_generate::{
    CancelToken, CompiledGrammar, Controls, EarlyStopping, GenerationConfig, GraphCapture, OneOrMany,
};
use serde::de::DeserializeOwned;

use super::video::VideoArgs;
use super::{Global, positive};
use crate::signals;

/// Options for generation and preprocessing.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerationArgs {
    /// Maximum number of tokens to generate [default: that of the model folder, or else 20].
    #[arg(long, value_name = "N", help_heading = "Length")]
    max_new_tokens: Option<usize>,
    /// Maximum number of tokens in prompt and answer together.
    #[arg(long, value_name = "N", help_heading = "Length")]
    max_length: Option<usize>,
    /// Minimum number of tokens in prompt and answer together.
    #[arg(long, value_name = "N", help_heading = "Length")]
    min_length: Option<usize>,
    /// Minimum number of tokens to generate.
    #[arg(long, value_name = "N", help_heading = "Length")]
    min_new_tokens: Option<usize>,
    /// Text that ends an answer. Repeat the option for several texts.
    #[arg(long, value_name = "TEXT", help_heading = "Length")]
    stop_strings: Option<Vec<String>>,
    /// Seconds after which an answer ends.
    #[arg(long, value_name = "SECONDS", help_heading = "Length")]
    max_time: Option<f64>,
    /// Sample tokens instead of taking the most likely one.
    #[arg(long, value_name = "BOOL", help_heading = "Strategy", num_args = 0..=1, default_missing_value = "true")]
    do_sample: Option<bool>,
    /// Number of beams; more than 1 selects beam search.
    #[arg(long, value_name = "N", help_heading = "Strategy")]
    num_beams: Option<usize>,
    /// Number of answers per sample.
    #[arg(long, value_name = "N", help_heading = "Strategy")]
    num_return_sequences: Option<usize>,
    /// Stop beam search once there are as many finished answers as beams (true), when better ones are unlikely
    /// (false), or when better ones are impossible (never).
    #[arg(long, value_name = "true|false|never", help_heading = "Strategy", value_parser = json::<EarlyStopping>)]
    early_stopping: Option<EarlyStopping>,
    /// Exponent of the length penalty: beam search divides the log-probability of an answer by its length to this
    /// power.
    #[arg(long, value_name = "X", help_heading = "Strategy", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Token id to start from if the prompt is empty.
    #[arg(long, value_name = "ID", help_heading = "Tokens")]
    bos_token_id: Option<u32>,
    /// Token ids that end an answer.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    eos_token_id: Option<Vec<u32>>,
    /// Token id that pads finished rows of a batch.
    #[arg(long, value_name = "ID", help_heading = "Tokens")]
    pad_token_id: Option<u32>,
    /// Token sequences with biases, as JSON: the bias is added to the score of the token that would complete the
    /// sequence.
    #[arg(long, value_name = "[[[ID,…],BIAS],…]", help_heading = "Tokens", value_parser = json::<Biases>)]
    sequence_bias: Option<Biases>,
    /// Factor in favour of tokens of the prompt (more than 1 makes them more likely).
    #[arg(long, value_name = "X", help_heading = "Tokens")]
    encoder_repetition_penalty: Option<f64>,
    /// Factor against tokens that have occurred already (more than 1 makes them less likely).
    #[arg(long, value_name = "X", help_heading = "Tokens")]
    repetition_penalty: Option<f64>,
    /// Forbid n-grams of this size from occurring twice.
    #[arg(long, value_name = "N", help_heading = "Tokens")]
    no_repeat_ngram_size: Option<usize>,
    /// Forbid n-grams of this size that occur in the prompt.
    #[arg(long, value_name = "N", help_heading = "Tokens")]
    encoder_no_repeat_ngram_size: Option<usize>,
    /// Token sequences that are never generated, as JSON.
    #[arg(long, value_name = "[[ID,…],…]", help_heading = "Tokens", value_parser = json::<BadWords>)]
    bad_words_ids: Option<BadWords>,
    /// Token id to force as the first generated token if the prompt has only one token.
    #[arg(long, value_name = "ID", help_heading = "Tokens")]
    forced_bos_token_id: Option<u32>,
    /// Token ids, one of which is forced as the last token when the length limit is reached.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    forced_eos_token_id: Option<Vec<u32>>,
    /// Replace NaN and infinite scores by finite ones.
    #[arg(long, value_name = "BOOL", help_heading = "Tokens", num_args = 0..=1, default_missing_value = "true")]
    remove_invalid_values: Option<bool>,
    /// After START new tokens, raise the scores of end tokens exponentially with base FACTOR; as JSON.
    #[arg(long, value_name = "[START,FACTOR]", help_heading = "Tokens", value_parser = json::<Decay>)]
    exponential_decay_length_penalty: Option<Decay>,
    /// Token ids that are never generated.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    suppress_tokens: Option<Vec<u32>>,
    /// Token ids that are never generated as the first token.
    #[arg(long, value_name = "ID,…", help_heading = "Tokens", value_delimiter = ',')]
    begin_suppress_tokens: Option<Vec<u32>>,
    /// Normalise the scores to log-probabilities after all logits processors.
    #[arg(long, value_name = "BOOL", help_heading = "Tokens", num_args = 0..=1, default_missing_value = "true")]
    renormalize_logits: Option<bool>,
    /// Divide the scores by this number.
    #[arg(long, value_name = "X", help_heading = "Sampling, with --do-sample")]
    temperature: Option<f64>,
    /// Top-H: keep the most likely tokens up to this fraction of the distribution's entropy.
    #[arg(long, value_name = "X", help_heading = "Sampling, with --do-sample")]
    top_h: Option<f64>,
    /// Keep only the N most likely tokens; 0 keeps all [default: 50].
    #[arg(long, value_name = "N", help_heading = "Sampling, with --do-sample")]
    top_k: Option<usize>,
    /// Nucleus sampling: keep the most likely tokens up to this total probability.
    #[arg(long, value_name = "P", help_heading = "Sampling, with --do-sample")]
    top_p: Option<f64>,
    /// Keep tokens with at least P times the probability of the most likely token.
    #[arg(long, value_name = "P", help_heading = "Sampling, with --do-sample")]
    min_p: Option<f64>,
    /// Locally typical sampling: keep the most typical tokens up to this total probability.
    #[arg(long, value_name = "P", help_heading = "Sampling, with --do-sample")]
    typical_p: Option<f64>,
    /// Keep tokens with at least this probability.
    #[arg(long, value_name = "P", help_heading = "Sampling, with --do-sample")]
    epsilon_cutoff: Option<f64>,
    /// Eta sampling: like --epsilon-cutoff, with a lower threshold where the entropy is high.
    #[arg(long, value_name = "P", help_heading = "Sampling, with --do-sample")]
    eta_cutoff: Option<f64>,
    /// With --json, print the log-probability of each token and of the N most likely alternatives.
    #[arg(long, value_name = "N", help_heading = "Output")]
    logprobs: Option<usize>,
    /// With --json, print the log-probability of each prompt token.
    #[arg(long, help_heading = "Output")]
    prompt_logprobs: bool,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Options for preprocessing: how samples become token ids and pixels.
#[derive(Debug, Clone, Args)]
struct ProcessArgs {
    /// Whether to encode parts of each image in addition to the whole image: its quarters, or the tiles of a grid
    /// [default: that of the model folder].
    #[arg(long, value_name = "BOOL", help_heading = "Preprocessing")]
    do_image_splitting: Option<bool>,
    /// How to remove transparency from images.
    #[arg(long, value_enum, default_value_t = AlphaArg::White, help_heading = "Preprocessing")]
    alpha: AlphaArg,
    /// Page to read from image files with several pages, such as TIFF, counted from 1 [default: 1].
    #[arg(long, value_name = "N", help_heading = "Preprocessing", value_parser = positive::<NonZeroU32>)]
    page: Option<NonZeroU32>,
    /// How to treat `<image>` and other special tokens in the text of messages.
    #[arg(long, value_enum, default_value_t = SpecialArg::Literal, help_heading = "Preprocessing")]
    special_tokens_in_text: SpecialArg,
    /// Transformers release whose token ids to reproduce.
    #[arg(long, value_enum, default_value_t = CompatibilityArg::Transformers5, help_heading = "Preprocessing")]
    compatibility: CompatibilityArg,
    /// For prompt lists: whether to put `<end_of_utterance>` between consecutive texts [default: true if the
    /// tokenizer has this token].
    #[arg(long, value_name = "BOOL", help_heading = "Preprocessing")]
    add_end_of_utterance_token: Option<bool>,
    /// For IDEFICS v1: end prompts with `</s>`.
    #[arg(long, help_heading = "Preprocessing")]
    add_eos_token: bool,
    #[command(flatten)]
    video: VideoArgs,
}

type BadWords = Vec<Vec<u32>>;
type Biases = Vec<(Vec<u32>, f32)>;
type Decay = (usize, f64);

/// Parses an option value that is written as in `generation_config.json`. Text that is not JSON becomes a string.
fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let value = serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.to_owned()));
    serde_json::from_value(value).map_err(|_| "expected JSON of the form shown after the option's name".to_owned())
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AlphaArg {
    /// Composite over white, as image viewers with a white background show it.
    White,
    /// Drop the alpha channel, as Transformers' file loader does.
    Drop,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SpecialArg {
    /// Treat special tokens as ordinary text.
    Literal,
    /// Treat special tokens as special tokens.
    Parse,
    /// Reject a sample that contains special tokens.
    Reject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompatibilityArg {
    /// Rebuild tokenizers of Llama classes, and put a space after each image.
    Transformers5,
    /// Use tokenizer.json unchanged.
    Transformers4,
}

impl GenerationArgs {
    /// Returns the generation options given on the command line.
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

    /// Returns these options with a default for `--max-new-tokens`, if none of them limits the length.
    pub(crate) fn with_max_new_tokens(&self, n_tokens: usize) -> Self {
        let default = self.max_length.is_none().then_some(n_tokens);
        Self { max_new_tokens: self.max_new_tokens.or(default), ..self.clone() }
    }

    /// Returns the names of the generation options given on the command line.
    pub(crate) fn given(&self) -> Vec<String> {
        let options = serde_json::to_value(self.options()).unwrap_or_default();
        let mut given: Vec<String> =
            options.as_object().into_iter().flat_map(|options| options.keys().cloned()).collect();
        given.extend(self.logprobs.map(|_| "logprobs".to_owned()));
        given.extend(self.prompt_logprobs.then(|| "prompt_logprobs".to_owned()));
        given
    }

    pub(super) fn has_logprobs(&self) -> bool {
        self.logprobs.is_some()
    }

    pub(super) fn has_prompt_logprobs(&self) -> bool {
        self.prompt_logprobs
    }

    /// Returns the preprocessing options given on the command line.
    pub(crate) fn process(&self, global: &Global) -> ProcessOptions {
        ProcessOptions {
            limits: global.image_limits(),
            cancel: Some(signals::cancel().flag()),
            ..self.process.options()
        }
    }

    /// Returns the settings of a run: grammar, seed, log-probabilities, cancellation and graph capture. If a lease is
    /// given, the decode steps of long answers are captured and replayed.
    pub(crate) fn controls<'a>(
        &self,
        global: &'a Global,
        grammar: Option<&CompiledGrammar>,
        cancel: &CancelToken,
    ) -> Controls<'a> {
        Controls {
            cancel: cancel.clone(),
            seed: global.seed,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            grammar: grammar.cloned(),
            speculation: global.speculate,
            graph_capture: global.lease.as_ref().map_or(GraphCapture::Never, GraphCapture::WhenLong),
            ..Controls::default()
        }
    }
}

impl ProcessArgs {
    fn options(&self) -> ProcessOptions {
        self.video.over(ProcessOptions {
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
        })
    }
}
