//! The command line.

mod bench;
mod classify;
mod generation;
mod grammar;
mod image;
mod sources;
mod unused;
mod video;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use idefics_checkpoint::PicklePolicy;
use idefics_checkpoint::gguf::{GgufMix, UnknownGgufMix};
use idefics_generate::engine::Speculation;
use idefics_generate::nn::Activations;
use idefics_generate::placement::MaxMemory;
use idefics_generate::processor::ProcessOptions;
use idefics_generate::processor::image::{ImageSource, Limits};
use idefics_generate::{
    DeviceChoice, DeviceLease, Precision, UnknownWeightFormat, VisionBatch, WeightFormat, WeightOptions,
};

pub(crate) use bench::{BenchArgs, ImageSize, VideoSize};
pub(crate) use classify::ClassifyArgs;
pub(crate) use generation::GenerationArgs;
pub(crate) use image::{MaxPixels, image};

use grammar::GrammarArgs;
use image::image_parser;
use sources::SourceArgs;

/// Vision-language models of the Idefics family: images and text in, text out.
#[derive(Debug, Parser)]
#[command(name = "idefics", version, propagate_version = true)]
#[command(after_help = "Examples:
  idefics demo
  idefics --model DIR caption photo.jpg
  idefics --model HuggingFaceM4/idefics2-8b ask photo.jpg \"How many people are there?\"
  idefics --model HuggingFaceTB/SmolVLM2-256M-Video-Instruct ask clip.mp4 \"What happens?\"
  idefics --model DIR classify photo.jpg --labels cat,dog,horse --rank
  idefics --model DIR --json generate --prompt-file prompts.json --max-new-tokens 64 --num-beams 4
  idefics --model DIR batch questions.jsonl --output answers.jsonl
  idefics --model DIR batch - --output - < questions.jsonl | jq -r .text
  idefics --model DIR chat photo.jpg
  idefics --model DIR inspect

Exit codes: 0 success, 1 some inputs failed, 2 usage error, 3 input rejected, 4 model rejected, 5 file system error,
6 limit exceeded, 7 network error, 8 non-finite numbers, 70 bug, 75 device fault,
129 SIGHUP, 130 SIGINT, 143 SIGTERM.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command accepts.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// A model folder in the Hugging Face layout, or a GGUF file of the Idefics3 family or a folder with one. On the
    /// hub: `org/name[@revision]`, or `org/name[@revision]:file.gguf` for a GGUF file [default: the built-in model,
    /// which was trained only on drawings of coloured shapes].
    #[arg(long, global = true, value_name = "FOLDER|FILE|ID", env = "IDEFICS_MODEL")]
    pub(crate) model: Option<OsString>,
    /// Vision tower of a GGUF model: a file, or the name of a file in the same hub repository [default: the
    /// `mmproj*.gguf` in the same folder; without such a file, the model reads text only].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) mmproj: Option<PathBuf>,
    /// Device to compute on: `auto`, `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`; auto picks the best device with
    /// room for the model. `idefics devices` lists all devices.
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Precision of the weights: auto, f32, bf16 or f16. On a GPU, activations have this precision too. On the CPU,
    /// they are f32.
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) dtype: Precision,
    /// Format to quantise linear layers to while loading: none, int8, nf4, fp4 or q4.
    #[arg(long, global = true, default_value = "none")]
    pub(crate) quantize: WeightFormat,
    /// Also quantise the scales of nf4 and fp4 to eight bits.
    #[arg(long, global = true)]
    pub(crate) double_quant: bool,
    /// Whether --quantize includes the vision tower.
    #[arg(long, global = true, value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub(crate) quantize_vision: bool,
    /// Whether --quantize includes the language model head.
    #[arg(long, global = true, value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub(crate) quantize_head: bool,
    /// On the CPU: precision of activations when many rows are multiplied by int8 or q4 weights, or when any number of
    /// rows is multiplied by GGUF blocks of four to eight bits, as in llama.cpp. int8 is faster and less exact than
    /// f32. On machines with AMX, int8 also makes attention over many queries use bf16: queries and keys are then sums
    /// of two bf16 numbers, and attention weights and values are single bf16 numbers.
    #[arg(long, global = true, value_name = "f32|int8", default_value = "f32", value_parser = activations)]
    pub(crate) activations: Activations,
    /// Maximum number of images to encode together [default: as many as fit in 256 MiB of activations, or in a quarter
    /// of the memory that the weights leave free if that is less].
    #[arg(long, global = true, value_name = "N", value_parser = positive::<NonZeroUsize>)]
    pub(crate) vision_batch: Option<NonZeroUsize>,
    /// Maximum number of pixels of an image, or `none` for no limit. Decoding takes up to 16 bytes per pixel
    /// [default: 64000000].
    #[arg(long, global = true, value_name = "N|none")]
    pub(crate) max_image_pixels: Option<MaxPixels>,
    /// On a GPU, launch every operation of a decode step separately instead of replaying a captured graph. This is
    /// slower, and meant for comparisons and for faulty drivers.
    #[arg(long, global = true)]
    pub(crate) no_replay: bool,
    /// Whether to guess the next tokens of an answer from text that it repeats, and to verify several of them in one
    /// step. This is faster if an answer copies parts of its prompt. It is done on the CPU while a single answer is
    /// generated, except in chats and beam search. auto guesses up to 7 tokens, but only if verifying them together
    /// gives the same bits as one step per token. N guesses up to N tokens in any case. off guesses none.
    #[arg(long, global = true, value_name = "auto|N|off", default_value = "auto")]
    pub(crate) speculate: Speculation,
    /// Read PyTorch pickles (`pytorch_model.bin`) if a folder has no safetensors. No code in them is executed.
    #[arg(long, global = true)]
    pub(crate) allow_pickle: bool,
    /// Spread the parts of the model over devices, main memory and memory-mapped files, and print the plan (IDEFICS v1
    /// only).
    #[arg(long, global = true, value_name = "auto", value_parser = ["auto"])]
    pub(crate) device_map: Option<String>,
    /// For --device-map and `inspect`: memory limits of the devices, in the order in which they are filled [default:
    /// nine tenths of the free memory of the GPU in use, or of all CUDA devices, and then of main memory].
    #[arg(long, global = true, value_name = "NAME=SIZE,…")]
    pub(crate) max_memory: Option<MaxMemory>,
    /// Number of CPU threads, at most 1024 [default: one per core].
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Seed for sampling. The same seed and prompt give the same answer, whatever else is in the batch. Greedy search
    /// does not use it.
    #[arg(long, global = true, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object per line for each answer, instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print details and timings to standard error.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// The lease that graph capture on a GPU needs, set by `main`; `None` with `--no-replay`.
    #[arg(skip)]
    pub(crate) lease: Option<DeviceLease>,
}

impl Global {
    /// Returns how to read and store the weights. `plain` contains only the precision that [`Global::dtype`] selects on
    /// the device.
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

    /// Returns the number of images to encode together if the weights leave `available` bytes free.
    pub(crate) fn vision_batch(&self, available: u64) -> VisionBatch {
        self.vision_batch.map_or_else(|| VisionBatch::within(available), VisionBatch::Images)
    }

    /// Limits for decoding images.
    pub(crate) fn image_limits(&self) -> Limits {
        self.max_image_pixels.map(MaxPixels::limits).unwrap_or_default()
    }

    /// Returns whether to read PyTorch pickles.
    pub(crate) fn pickles(&self) -> PicklePolicy {
        if self.allow_pickle { PicklePolicy::Allowed } else { PicklePolicy::Refused }
    }
}

/// Parses a positive whole number, such as a `NonZeroUsize` or a `NonZeroU32`.
fn positive<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected a whole number of at least 1")
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
    /// Describe each image or video.
    #[command(after_help = "Example: idefics --model DIR caption photo.jpg another.png")]
    Caption(CaptionArgs),
    /// Answer a question about images and videos.
    ///
    /// Models of the family SmolVLM2 read videos: animated GIF, WebP and PNG files, AVI files of JPEG pictures, and
    /// folders of pictures in the order of their names. If the program ffmpeg is installed, they also read MP4, WebM
    /// and other files. Other models see only the first frame of an animation.
    #[command(after_help = "Examples:
  idefics --model DIR ask before.jpg after.jpg \"What has changed?\"
  idefics --model DIR ask clip.mp4 \"What happens?\" --video-frames 16
  idefics --model DIR ask frames/ \"What happens?\" --video-fps 10
  idefics --model DIR ask receipt.jpg \"What was bought?\" --json-schema receipt.json --max-new-tokens 300
  idefics --model DIR ask photo.jpg \"How many people are there?\" --regex \"[0-9]+\"")]
    Ask(AskArgs),
    /// Classify an image: print one of the labels, or with --rank all labels with probabilities.
    ///
    /// Without --rank, the model answers the question with one of the labels and cannot say anything else. Unless
    /// --max-new-tokens or --max-length is given, the answer has room for the longest label.
    #[command(after_help = "Examples:
  idefics --model DIR classify photo.jpg --labels vegetables,electronics,furniture
  idefics --model DIR classify photo.jpg --label \"red, round\" --label blue
  idefics --model DIR --json classify photo.jpg --labels cat,dog --rank --calibrate")]
    Classify(ClassifyArgs),
    /// Run prompts from a JSON file: one sample, or a list of samples to run as a batch.
    #[command(after_help = "A sample has one of these forms:
  {\"text\": \"User:<image>What is this?<end_of_utterance>\\nAssistant:\", \"images\": [\"photo.jpg\"]}
  {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"path\": \"photo.jpg\"},
    {\"type\": \"text\", \"text\": \"What is this?\"}]}], \"add_generation_prompt\": true}
  {\"text\": \"User: <video>What happens?<end_of_utterance>\\nAssistant:\", \"videos\": [{\"path\": \"clip.mp4\"}]}
Instead of `path`, a video may have \"frames\": [\"0.png\", …], \"fps\": 10. Paths are relative to the prompt file, or
to the working folder for standard input. If one sample of a list is rejected, none is run.
Example: idefics --model DIR generate --prompt-file prompts.json")]
    Generate(GenerateArgs),
    /// Run any number of samples from a file with one JSON object per line; an interrupted run can be resumed.
    #[command(after_help = "A line is a sample as for `generate`, with an optional id:
  {\"id\": \"a1\", \"text\": \"<image>What is this?\", \"images\": [\"photo.jpg\"], \"source\": \"web\"}
A line of the output is {\"id\": …, \"source\": …, \"text\": …, …} as with --json, or {\"id\": …, \"error\": \"…\"}.
The lines are in the order of the input. If the input has no id, repeats one, or has one that is neither a string nor a
number, the output line starts with {\"line\": N, the number of the input line counted from 1. Other keys, such as
\"source\" here, are copied to the output. Run the same command again to resume after an interruption, to update the
output after editing the input, or to retry failed rows: rows that are unchanged and answered are not run again.
Examples:
  idefics --model DIR batch in.jsonl --output out.jsonl
  jq -c 'select(.split == \"test\")' all.jsonl | idefics --model DIR batch - --output - | jq -r .text")]
    Batch(BatchArgs),
    /// Chat about images. Commands: /image PATH, /undo, /reset, /save PATH, /help. Ctrl-C stops an answer, Ctrl-D
    /// ends the program.
    #[command(after_help = "Example: idefics --model DIR chat photo.jpg --max-new-tokens 200")]
    Chat(ChatArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: idefics completions bash > ~/.local/share/bash-completion/completions/idefics")]
    Completions {
        /// Shell to generate the script for.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example: idefics man > ~/.local/share/man/man1/idefics.1")]
    Man,
    /// Draw random scenes, ask the model about them, and compare its answers with the correct ones.
    #[command(after_help = "Example: idefics demo --count 2 --seed 7")]
    Demo(DemoArgs),
    /// Measure each stage of generating an answer. The printed fraction of the memory bandwidth is that of the fastest
    /// decode step.
    #[command(after_help = "Example: idefics bench --random-weights idefics2-8b --text-layers 4 --dtype bf16")]
    Bench(BenchArgs),
    /// Write a model folder with quantised linear layers, or GGUF files. The folder appears only when it is complete.
    #[command(after_help = "Examples:
  idefics --model DIR quantize --to nf4 DIR-nf4
  idefics --model DIR quantize --to gguf:q4_k_m DIR-gguf")]
    Quantize(QuantizeArgs),
    /// Print the contents of a model folder and the memory that the model needs in each precision.
    #[command(after_help = "Example: idefics --model DIR inspect")]
    Inspect,
    /// List the devices that --device accepts, with their memory, kernel language and supported values of --dtype.
    #[command(after_help = "Example: idefics --json devices")]
    Devices,
    /// List the public models with their sizes, the memory of their weights by format, and whether they are in the hub
    /// cache.
    #[command(after_help = "Example: idefics models")]
    Models,
    /// Compile and autotune GPU kernels for similar requests, and print how long that takes.
    ///
    /// Generates an answer for the batch of images twice. Unless --max-new-tokens is given, an answer has four
    /// tokens, which is enough to capture a decode step. If the program was built with the feature `persistence`, the
    /// chosen kernels are kept for later runs.
    #[command(after_help = "Examples:
  idefics --model DIR --device cuda warm-up photo.jpg
  idefics --model DIR --device cuda warm-up photo.jpg photo.jpg photo.jpg photo.jpg --num-beams 4")]
    WarmUp(WarmUpArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WarmUpArgs {
    /// Paths, http(s) URLs or data URLs of typical images, one per row of the batch.
    #[arg(required = true, value_name = "IMAGE", value_parser = image_parser())]
    pub(crate) images: Vec<ImageSource>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CaptionArgs {
    /// Paths, http(s) URLs or data URLs of images, paths of videos or of folders of frames.
    #[arg(required = true, value_name = "IMAGE", value_parser = image_parser())]
    pub(crate) images: Vec<ImageSource>,
    /// The request to a chat model [default: "Describe this image." or "Describe this video."], or the beginning of the
    /// text for a base model [default: none].
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Paths, http(s) URLs or data URLs of any number of images, paths of videos or of folders of frames, then the
    /// question.
    #[arg(required = true, num_args = 1.., value_name = "IMAGE… QUESTION")]
    pub(crate) images_and_question: Vec<OsString>,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// File of samples with one JSON object per line, or - for standard input.
    #[arg(value_name = "INPUT.jsonl|-")]
    pub(crate) input: PathBuf,
    /// File to write the answers to, or - for standard output. Pipes and devices are written directly. While the batch
    /// runs, answered rows are stored in OUT.jsonl.part. OUT.jsonl.lock is locked during the run. Afterwards, it says
    /// which run wrote the output. Without it, the output is assumed to belong to another program and is not updated.
    #[arg(long, value_name = "OUT.jsonl|-")]
    pub(crate) output: PathBuf,
    /// Maximum number of samples to run together. Samples of similar length are put together.
    #[arg(long, default_value = "8", value_parser = positive::<NonZeroUsize>)]
    pub(crate) batch_size: NonZeroUsize,
    /// Replace the output and discard all previous answers.
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

impl BatchArgs {
    /// Returns the preprocessing options, including the allowed image sources.
    pub(crate) fn process(&self, global: &Global) -> ProcessOptions {
        ProcessOptions { sources: self.sources.policy(), ..self.generation.process(global) }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Images and videos to show with the first question.
    #[arg(value_name = "IMAGE", value_parser = image_parser())]
    pub(crate) images: Vec<ImageSource>,
    /// System prompt, if the model's chat template supports one.
    #[arg(long)]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// JSON file with one sample or a list of samples, or - for standard input.
    #[arg(long, value_name = "FILE.json|-")]
    pub(crate) prompt_file: PathBuf,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

impl GenerateArgs {
    /// Returns the preprocessing options, including the allowed image sources.
    pub(crate) fn process(&self, global: &Global) -> ProcessOptions {
        ProcessOptions { sources: self.sources.policy(), ..self.generation.process(global) }
    }
}

/// Value of `--to`: what `idefics quantize` writes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum QuantizeTo {
    /// A model folder with safetensors files.
    Packed(WeightFormat),
    /// A folder with GGUF files.
    Gguf(GgufMix),
}

impl FromStr for QuantizeTo {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.strip_prefix("gguf:") {
            Some(mix) => mix.parse().map(Self::Gguf).map_err(|error: UnknownGgufMix| error.to_string()),
            None => {
                name.parse().map(Self::Packed).map_err(|error: UnknownWeightFormat| format!("{error}, or gguf:TYPE"))
            }
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Format to write: int8, nf4, fp4 or q4, of which Transformers can read nf4 and fp4; or gguf:TYPE for GGUF files
    /// that llama.cpp and this program can read (Idefics3 family only). TYPE is f32, f16, bf16, q8_0, q4_0, q4_1, q5_0,
    /// q5_1, q4_k_s, q4_k_m, q5_k_s, q5_k_m or q6_k.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: QuantizeTo,
    /// Folder to write, which must not exist yet.
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Number of scenes to draw.
    #[arg(long, default_value_t = 3)]
    pub(crate) count: usize,
    /// Do not show the images in the terminal.
    #[arg(long)]
    pub(crate) no_pictures: bool,
    /// Save the images in this folder as PNG files.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) save: Option<PathBuf>,
}
