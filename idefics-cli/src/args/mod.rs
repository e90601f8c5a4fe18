//! The command line.

mod bench;
mod classify;
mod generation;
mod image;
mod sources;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use idefics_checkpoint::Pickles;
use idefics_generate::nn::Activations;
use idefics_generate::placement::Places;
use idefics_generate::processor::ProcessOptions;
use idefics_generate::processor::image::{ImageSource, Limits};
use idefics_generate::{DeviceChoice, DeviceLease, Precision, VisionBatch, WeightFormat, WeightOptions};

pub(crate) use bench::BenchArgs;
pub(crate) use classify::ClassifyArgs;
pub(crate) use generation::GenerationArgs;
pub(crate) use image::{MaxPixels, image};

use image::image_parser;
use sources::SourceArgs;

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
  idefics --model DIR batch - --output - < questions.jsonl | jq -r .text
  idefics --model DIR chat photo.jpg
  idefics --model DIR inspect

Exit codes: 0 done, 1 finished with some inputs failed, 2 usage, 3 input rejected, 4 model rejected, 5 file system,
6 limit, 7 network, 8 non-finite numbers, 70 bug, 75 device fault, 130 interrupted, 129 hung up, 143 terminated.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// A model folder in the public layout, a GGUF file of the Idefics3 family or a folder with one, or a hub id
    /// `org/name[@revision]` [default: the built-in model, which knows drawn shapes only].
    #[arg(long, global = true, value_name = "FOLDER|FILE|ID", env = "IDEFICS_MODEL")]
    pub(crate) model: Option<OsString>,
    /// The vision tower of a GGUF model [default: the `mmproj*.gguf` beside it; without one it reads text alone].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) mmproj: Option<PathBuf>,
    /// What to compute on: `auto`, `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`; auto is the best that holds the model.
    /// `idefics devices` lists them.
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Precision of the weights, and on a GPU of activations, which are f32 on the CPU: auto, f32, bf16 or f16.
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) dtype: Precision,
    /// What linear layers are quantised to while they are loaded: none, int8, nf4, fp4 or q4.
    #[arg(long, global = true, default_value = "none")]
    pub(crate) quantize: WeightFormat,
    /// Round the scales of nf4 and fp4 to eight bits too.
    #[arg(long, global = true)]
    pub(crate) double_quant: bool,
    /// Whether --quantize covers the vision tower.
    #[arg(long, global = true, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub(crate) quantize_vision: bool,
    /// Whether --quantize covers the head.
    #[arg(long, global = true, value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub(crate) quantize_head: bool,
    /// On the CPU, what activations are multiplied as where there are many and weights are int8 or q4: f32, or int8, which
    /// is faster and less exact. With int8, attention of many queries is rounded to bf16 on machines with AMX: queries and
    /// keys are sums of two bf16, weights and values one.
    #[arg(long, global = true, value_name = "f32|int8", default_value = "f32", value_parser = activations)]
    pub(crate) activations: Activations,
    /// Pictures that the vision tower encodes together, at most [default: as many as take
    /// 256 MiB, or a quarter of the memory that is left beside the weights].
    #[arg(long, global = true, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    pub(crate) vision_batch: Option<NonZeroUsize>,
    /// Pixels of the largest picture that is decoded, or none for no limit: decoding takes up to 16 bytes per pixel
    /// [default: 64000000].
    #[arg(long, global = true, value_name = "N|none")]
    pub(crate) max_image_pixels: Option<MaxPixels>,
    /// On a GPU, launch the operations of every step one after the other, and record none to replay: slower, to compare, or
    /// where a driver errs.
    #[arg(long, global = true)]
    pub(crate) no_replay: bool,
    /// Read PyTorch pickles (`pytorch_model.bin`) where a folder has no safetensors; nothing in them is run.
    #[arg(long, global = true)]
    pub(crate) allow_pickle: bool,
    /// Spread the parts of a model over devices, main memory and the mapped files, and say how (first Idefics only).
    #[arg(long, global = true, value_name = "auto", value_parser = ["auto"])]
    pub(crate) device_map: Option<String>,
    /// For --device-map and `inspect`: places in the order in which they are filled [default: nine tenths of what is
    /// free on the GPU that is used, or on all CUDA devices, then of main memory].
    #[arg(long, global = true, value_name = "NAME=SIZE,…")]
    pub(crate) max_memory: Option<Places>,
    /// CPU threads, at most 1024 [default: one a core].
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
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
    /// How the weights are read and held; `plain` says what [`Global::dtype`] means on the device.
    pub(crate) fn weights(&self, plain: WeightOptions) -> WeightOptions {
        WeightOptions {
            quantize: self.quantize,
            double_quant: self.double_quant,
            quantize_vision: self.quantize_vision,
            quantize_head: self.quantize_head,
            activations: self.activations,
            pickles: self.pickles(),
            ..plain
        }
    }

    /// How many pictures are encoded together where `available` bytes are left beside the weights.
    pub(crate) fn vision_batch(&self, available: u64) -> VisionBatch {
        self.vision_batch.map_or_else(|| VisionBatch::within(available), VisionBatch::Images)
    }

    /// The lease that a GPU needs to record steps; `None` with `--no-replay`. For the thread that runs the command.
    #[allow(unsafe_code)] // a promise about the program's threads
    pub(crate) fn lease(&self) -> Option<DeviceLease> {
        // SAFETY: the thread that runs a command is the only one that uses devices; others read files and decode pictures.
        (!self.no_replay).then(|| unsafe { DeviceLease::for_this_thread() })
    }

    /// What a picture may cost.
    pub(crate) fn image_limits(&self) -> Limits {
        self.max_image_pixels.map(MaxPixels::limits).unwrap_or_default()
    }

    /// Whether PyTorch pickles are read.
    pub(crate) fn pickles(&self) -> Pickles {
        if self.allow_pickle { Pickles::Allowed } else { Pickles::Refused }
    }
}

/// A number of a type that has no zero.
fn from_one<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected a whole number from 1 on")
}

fn activations(name: &str) -> Result<Activations, String> {
    match name {
        "f32" => Ok(Activations::F32),
        "int8" => Ok(Activations::Int8),
        _ => Err("expected f32 or int8".to_owned()),
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
  idefics --model DIR classify photo.jpg --label \"red, round\" --label blue
  idefics --model DIR --json classify photo.jpg --labels cat,dog --rank --calibrate")]
    Classify(ClassifyArgs),
    /// Run prompts from a JSON file: one sample, or a list of samples that is run as a batch.
    #[command(after_help = "A sample is one of
  {\"text\": \"User:<image>What is this?<end_of_utterance>\\nAssistant:\", \"images\": [\"photo.jpg\"]}
  {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"path\": \"photo.jpg\"},
    {\"type\": \"text\", \"text\": \"What is this?\"}]}], \"add_generation_prompt\": true}
Image paths are relative to the file, or to the working folder for standard input. If a sample of a batch is refused, none is run. Example: idefics --model DIR generate --prompt-file prompts.json")]
    Generate(GenerateArgs),
    /// Run any number of samples from a file with one JSON object a line; what was done is kept if the program ends.
    #[command(after_help = "A line is a sample as of `generate`, with an id of its own if wanted:
  {\"id\": \"a1\", \"text\": \"<image>What is this?\", \"images\": [\"photo.jpg\"], \"source\": \"web\"}
A line of the output is {\"id\": …, \"source\": …, \"text\": …, …} as of --json, or {\"id\": …, \"error\": \"…\"}, in the order
of the input; it begins with {\"line\": N, counted from 1, where the input has no id, one that an earlier row has, or one that
is neither a string nor a number. Keys that a sample does not have, as \"source\" here, come out again. Run the same
command again to go on after an interruption, after the input was edited, or to try rows with errors again: what is the
same and was answered is not run again.
Examples:
  idefics --model DIR batch in.jsonl --output out.jsonl
  jq -c 'select(.split == \"test\")' all.jsonl | idefics --model DIR batch - --output - | jq -r .text")]
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
    /// Measure each stage of an answer. The share of the memory's bandwidth is that of the fastest decode step.
    #[command(after_help = "Example: idefics bench --random-weights idefics2-8b --text-layers 4 --dtype bf16")]
    Bench(BenchArgs),
    /// Write a model folder with its linear layers quantised; the folder appears complete or not at all.
    #[command(after_help = "Example: idefics --model DIR quantize --to nf4 DIR-nf4")]
    Quantize(QuantizeArgs),
    /// Say what a model folder holds.
    #[command(after_help = "Example: idefics --model DIR inspect")]
    Inspect,
    /// List what --device may name: memory, the language of the kernels, and what --dtype may be there.
    #[command(after_help = "Example: idefics --json devices")]
    Devices,
    /// Have a GPU compile and choose its kernels for answers of this kind, and say how long that takes.
    ///
    /// Begins an answer about the images, which are a batch, twice: of four tokens, unless --max-new-tokens says otherwise,
    /// enough for a decode step to be recorded. Built with the feature `persistence` the choices are kept, and later runs
    /// need not wait for them.
    #[command(after_help = "Examples:
  idefics --model DIR --device cuda warm-up photo.jpg
  idefics --model DIR --device cuda warm-up photo.jpg photo.jpg photo.jpg photo.jpg --num-beams 4")]
    WarmUp(WarmUpArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WarmUpArgs {
    /// Paths, http(s) URLs or data URLs of images like those to come, one a row of the batch.
    #[arg(required = true, value_name = "IMAGE", value_parser = image_parser())]
    pub(crate) images: Vec<ImageSource>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CaptionArgs {
    /// Paths, http(s) URLs or data URLs.
    #[arg(required = true, value_name = "IMAGE", value_parser = image_parser())]
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
    pub(crate) images_and_question: Vec<OsString>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Samples, one JSON object a line; - for standard input.
    #[arg(value_name = "INPUT.jsonl|-")]
    pub(crate) input: PathBuf,
    /// Where the answers go; - for standard output. Pipes and devices are written to as they are. While the batch runs,
    /// finished rows are stored in OUT.jsonl.part. OUT.jsonl.lock is locked by the run and afterwards identifies it:
    /// without this file the output counts as another program's.
    #[arg(long, value_name = "OUT.jsonl|-")]
    pub(crate) output: PathBuf,
    /// Samples that are run together; those of similar length are.
    #[arg(long, default_value = "8", value_parser = from_one::<NonZeroUsize>)]
    pub(crate) batch_size: NonZeroUsize,
    /// Replace the output and forget what was done.
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

impl BatchArgs {
    /// How samples are preprocessed, and what they may name.
    pub(crate) fn process(&self, global: &Global) -> ProcessOptions {
        ProcessOptions { sources: self.sources.policy(), ..self.generation.process(global) }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Images of the first question.
    #[arg(value_name = "IMAGE", value_parser = image_parser())]
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
    pub(crate) sources: SourceArgs,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

impl GenerateArgs {
    /// How samples are preprocessed, and what they may name.
    pub(crate) fn process(&self, global: &Global) -> ProcessOptions {
        ProcessOptions { sources: self.sources.policy(), ..self.generation.process(global) }
    }
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The format: int8, nf4, fp4 or q4. Transformers reads nf4 and fp4.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: WeightFormat,
    /// The folder to write, which must not be there.
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
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
