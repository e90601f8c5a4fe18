//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use idefics_generate::processor::image::{Alpha, ImageSource};
use idefics_generate::processor::{Compatibility, ProcessOptions, SpecialTokensInText};
use idefics_generate::{DeviceChoice, EosTokenId, GenerationConfig, Precision};

/// Vision-language models of the Idefics family: images and text in, text out.
#[derive(Debug, Parser)]
#[command(name = "idefics", version, propagate_version = true)]
#[command(after_help = "Examples:
  idefics demo
  idefics --model DIR caption photo.jpg
  idefics --model HuggingFaceM4/idefics2-8b ask photo.jpg \"How many people are there?\"
  idefics --model DIR --json generate --prompt-file prompts.json --max-new-tokens 64
  idefics --model DIR inspect

Exit codes: 0 done, 1 finished with some inputs failed, 2 usage, 3 input rejected, 4 model rejected, 5 file system,
6 limit, 7 network, 8 non-finite numbers, 70 bug, 75 device fault, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// A model folder in the public layout, or a hub id `org/name[@revision]` [default: the built-in model, which knows
    /// drawn shapes only].
    #[arg(long, global = true, value_name = "FOLDER|ID", env = "IDEFICS_MODEL")]
    pub(crate) model: Option<String>,
    /// What to compute on: auto, cpu, cuda, cuda:N, wgpu or wgpu:N.
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Precision of weights and activations: auto, f32, bf16 or f16.
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) dtype: Precision,
    /// Format of the weights; only `none` is implemented.
    #[arg(long, global = true, default_value = "none", value_parser = ["none"])]
    pub(crate) quantize: String,
    /// CPU threads [default: one a core].
    #[arg(long, global = true)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Seed of random choices; greedy search makes none.
    #[arg(long, global = true, default_value_t = 0)]
    pub(crate) seed: u64,
    /// One JSON object a sample and line instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on standard error what is being done.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Describe each image.
    #[command(after_help = "Example: idefics --model DIR caption photo.jpg another.png")]
    Caption(CaptionArgs),
    /// Answer a question about images.
    #[command(after_help = "Example: idefics --model DIR ask before.jpg after.jpg \"What has changed?\"")]
    Ask(AskArgs),
    /// Run prompts from a JSON file: one sample, or a list of samples that is run as a batch.
    #[command(after_help = "A sample is one of
  {\"text\": \"User:<image>What is this?<end_of_utterance>\\nAssistant:\", \"images\": [\"photo.jpg\"]}
  {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"path\": \"photo.jpg\"},
    {\"type\": \"text\", \"text\": \"What is this?\"}]}], \"add_generation_prompt\": true}
Image paths are relative to the file. If a sample of a batch is refused, none is run. Example: idefics --model DIR generate --prompt-file prompts.json")]
    Generate(GenerateArgs),
    /// Draw a few scenes, ask about them, and answer.
    #[command(after_help = "Example: idefics demo --count 2 --seed 7")]
    Demo(DemoArgs),
    /// Say what a model folder holds.
    #[command(after_help = "Example: idefics --model DIR inspect")]
    Inspect,
}

#[derive(Debug, Args)]
pub(crate) struct CaptionArgs {
    /// Paths, http(s) URLs or data URLs.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<ImageSource>,
    /// What to ask of a model that chats [default: "Describe this image."], or the beginning of the text for a base
    /// model [default: none].
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Paths, http(s) URLs or data URLs of any number of images; the last argument is the question.
    #[arg(required = true, num_args = 1.., value_name = "IMAGE… QUESTION")]
    pub(crate) images_and_question: Vec<String>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// A file with one sample or a list of samples, or - for standard input.
    #[arg(long, value_name = "FILE.json|-")]
    pub(crate) prompt_file: PathBuf,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Scenes to draw.
    #[arg(long, default_value_t = 3)]
    pub(crate) count: usize,
    /// Do not show the pictures.
    #[arg(long)]
    pub(crate) no_pictures: bool,
    /// Keep the pictures in this folder as PNG files.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) save: Option<PathBuf>,
}

/// How prompts become tokens, and tokens text.
#[derive(Debug, Args)]
pub(crate) struct GenerationArgs {
    /// Tokens to generate at most [default: the model folder's, else 20].
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Tokens of prompt and answer together at most.
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Ids that end an answer.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    eos_token_id: Option<Vec<u32>>,
    /// Id that fills finished rows of a batch.
    #[arg(long, value_name = "ID")]
    pad_token_id: Option<u32>,
    /// Token sequences that are never generated, as JSON.
    #[arg(long, value_name = "[[ID,…],…]", value_parser = parse_bad_words)]
    bad_words_ids: Option<BadWords>,
    /// Whether each image is also shown as its four quarters [default: the model folder's].
    #[arg(long, value_name = "BOOL")]
    do_image_splitting: Option<bool>,
    /// What becomes of transparent pixels.
    #[arg(long, value_enum, default_value_t = AlphaArg::White)]
    alpha: AlphaArg,
    /// What `<image>` and other special tokens mean in the text of messages.
    #[arg(long, value_enum, default_value_t = SpecialArg::Literal)]
    special_tokens_in_text: SpecialArg,
    /// Which release of Transformers the token ids follow.
    #[arg(long, value_enum, default_value_t = CompatibilityArg::Transformers5)]
    compatibility: CompatibilityArg,
}

type BadWords = Vec<Vec<u32>>;

fn parse_bad_words(text: &str) -> Result<BadWords, serde_json::Error> {
    serde_json::from_str(text)
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
            eos_token_id: self.eos_token_id.clone().map(EosTokenId::Many),
            pad_token_id: self.pad_token_id,
            bad_words_ids: self.bad_words_ids.clone(),
            ..GenerationConfig::default()
        }
    }

    /// What the call says about preprocessing.
    pub(crate) fn process(&self) -> ProcessOptions {
        ProcessOptions {
            do_image_splitting: self.do_image_splitting,
            alpha: match self.alpha {
                AlphaArg::White => Alpha::White,
                AlphaArg::Drop => Alpha::Drop,
            },
            special_tokens_in_text: match self.special_tokens_in_text {
                SpecialArg::Literal => SpecialTokensInText::Literal,
                SpecialArg::Parse => SpecialTokensInText::Parse,
                SpecialArg::Reject => SpecialTokensInText::Reject,
            },
            compatibility: match self.compatibility {
                CompatibilityArg::Transformers5 => Compatibility::Transformers5,
                CompatibilityArg::Transformers4 => Compatibility::Transformers4,
            },
            ..ProcessOptions::default()
        }
    }
}
