//! The command line.

mod generation;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use idefics_generate::nn::checkpoint::Pickles;
use idefics_generate::placement::Places;
use idefics_generate::processor::image::ImageSource;
use idefics_generate::{DeviceChoice, Precision, RankOptions};

pub(crate) use generation::GenerationArgs;

/// Vision-language models of the Idefics family: images and text in, text out.
#[derive(Debug, Parser)]
#[command(name = "idefics", version, propagate_version = true)]
#[command(after_help = "Examples:
  idefics demo
  idefics --model DIR caption photo.jpg
  idefics --model HuggingFaceM4/idefics2-8b ask photo.jpg \"How many people are there?\"
  idefics --model DIR classify photo.jpg --labels cat,dog,horse --rank
  idefics --model DIR --json generate --prompt-file prompts.json --max-new-tokens 64 --num-beams 4
  idefics --model DIR batch questions.jsonl --output answers.jsonl
  idefics --model DIR chat photo.jpg
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
    /// Read PyTorch pickles (`pytorch_model.bin`) where a folder has no safetensors; nothing in them is run.
    #[arg(long, global = true)]
    pub(crate) allow_pickle: bool,
    /// Spread the parts of a model over devices, main memory and the mapped files, and say how (first Idefics only).
    #[arg(long, global = true, value_name = "auto", value_parser = ["auto"])]
    pub(crate) device_map: Option<String>,
    /// For --device-map and `inspect`: places in the order in which they are filled [default: main memory, as much as is free].
    #[arg(long, global = true, value_name = "NAME=SIZE,…")]
    pub(crate) max_memory: Option<Places>,
    /// CPU threads [default: one a core].
    #[arg(long, global = true)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Seed of random choices; greedy search makes none. The same seed and prompt give the same answer, whatever else is
    /// in a batch.
    #[arg(long, global = true, default_value_t = 0)]
    pub(crate) seed: u64,
    /// One JSON object a sample and line instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on standard error what is being done.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

impl Global {
    /// Whether PyTorch pickles are read.
    pub(crate) fn pickles(&self) -> Pickles {
        if self.allow_pickle { Pickles::Allowed } else { Pickles::Refused }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Describe each image.
    #[command(after_help = "Example: idefics --model DIR caption photo.jpg another.png")]
    Caption(CaptionArgs),
    /// Answer a question about images.
    #[command(after_help = "Example: idefics --model DIR ask before.jpg after.jpg \"What has changed?\"")]
    Ask(AskArgs),
    /// Say which label fits an image: the one that the model names, or with --rank all of them with probabilities.
    #[command(after_help = "Examples:
  idefics --model DIR classify photo.jpg --labels vegetables,electronics,furniture
  idefics --model DIR --json classify photo.jpg --labels cat,dog --rank --calibrate")]
    Classify(ClassifyArgs),
    /// Run prompts from a JSON file: one sample, or a list of samples that is run as a batch.
    #[command(after_help = "A sample is one of
  {\"text\": \"User:<image>What is this?<end_of_utterance>\\nAssistant:\", \"images\": [\"photo.jpg\"]}
  {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"path\": \"photo.jpg\"},
    {\"type\": \"text\", \"text\": \"What is this?\"}]}], \"add_generation_prompt\": true}
Image paths are relative to the file. If a sample of a batch is refused, none is run. Example: idefics --model DIR generate --prompt-file prompts.json")]
    Generate(GenerateArgs),
    /// Run any number of samples from a file with one JSON object a line; what was done is kept if the program ends.
    #[command(after_help = "A line is a sample as of `generate`, with an id of its own if wanted:
  {\"id\": \"a1\", \"text\": \"<image>What is this?\", \"images\": [\"photo.jpg\"]}
A line of the output is {\"id\": …, \"text\": …, …} as of --json, or {\"id\": …, \"error\": \"…\"}, in the order of the input. Run the
same command again to go on after an interruption. Example: idefics --model DIR batch in.jsonl --output out.jsonl")]
    Batch(BatchArgs),
    /// Talk about images: /image PATH, /undo, /reset, /save PATH, /help; Ctrl-C ends an answer, Ctrl-D the program.
    #[command(after_help = "Example: idefics --model DIR chat photo.jpg --max-new-tokens 200")]
    Chat(ChatArgs),
    /// Print the completions of a shell: source them, or put them where it looks.
    #[command(after_help = "Example: idefics completions bash > ~/.local/share/bash-completion/completions/idefics")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example: idefics man > ~/.local/share/man/man1/idefics.1")]
    Man,
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
pub(crate) struct ClassifyArgs {
    /// A path, an http(s) URL or a data URL.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: ImageSource,
    /// The labels.
    #[arg(long, required = true, value_delimiter = ',', value_name = "LABEL,…")]
    pub(crate) labels: Vec<String>,
    /// The question [default: one that names the labels].
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// Score every label instead of letting the model answer, and print all with probabilities.
    #[arg(long)]
    pub(crate) rank: bool,
    /// With --rank: divide the log-likelihood of a label by its tokens.
    #[arg(long, requires = "rank")]
    pub(crate) normalize_length: bool,
    /// With --rank: take off what the label has without the image, so that common words are at no advantage.
    #[arg(long, requires = "rank")]
    pub(crate) calibrate: bool,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

impl ClassifyArgs {
    pub(crate) fn rank_options(&self) -> RankOptions {
        RankOptions { normalize_length: self.normalize_length, calibrate: self.calibrate }
    }
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Samples, one JSON object a line.
    #[arg(value_name = "INPUT.jsonl")]
    pub(crate) input: PathBuf,
    /// Where the answers go; beside it, OUT.jsonl.part keeps what was done so far.
    #[arg(long, value_name = "OUT.jsonl")]
    pub(crate) output: PathBuf,
    /// Samples that are run together; those of similar length are.
    #[arg(long, default_value = "8")]
    pub(crate) batch_size: NonZeroUsize,
    /// Replace the output and forget what was done.
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Images of the first question.
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<ImageSource>,
    /// What the model is told before the conversation, if its template has a place for it.
    #[arg(long)]
    pub(crate) system: Option<String>,
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
