//! `cargo xtask compare-formats`: the effect of each weight format on the answers of the built-in model.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_demo::{Example, Task};
use idefics_generate::nn::Activations;
use idefics_generate::{DeviceChoice, Idefics, LogitsToKeep, WeightOptions};
use idefics_train::{LabelRecipe, TrainingBatch};
use indicatif::{ProgressBar, ProgressStyle};

use super::data::Data;
use super::eval::{answers, examples};

/// Batch size.
const BATCH: usize = 25;

/// The formats: name, `--quantize`, `--double-quant`, dtype of weights that are not quantised, activations.
const FORMATS: [(&str, &str, bool, DType, Activations); 9] = [
    ("bf16", "none", false, DType::BF16, Activations::F32),
    ("f16", "none", false, DType::F16, Activations::F32),
    ("int8", "int8", false, DType::F32, Activations::F32),
    ("nf4", "nf4", false, DType::F32, Activations::F32),
    ("nf4 double", "nf4", true, DType::F32, Activations::F32),
    ("fp4", "fp4", false, DType::F32, Activations::F32),
    ("q4", "q4", false, DType::F32, Activations::F32),
    ("int8, int8 activations", "int8", false, DType::F32, Activations::Int8),
    ("q4, int8 activations", "q4", false, DType::F32, Activations::Int8),
];

/// Compare each weight format with f32: changed answers, changed tokens, and mean KL divergence of the next token.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask compare-formats --seed 7 --count 1000
  cargo xtask compare-formats --only activations")]
pub(crate) struct Args {
    /// Model folder.
    #[arg(long, default_value = "idefics-demo/model")]
    model: PathBuf,
    /// Seed of the scenes, as in `eval-demo`.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of examples; they cycle through all tasks.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Compare only formats whose name contains this text.
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
    /// Print one JSON object per format.
    #[arg(long)]
    json: bool,
    /// Device to compute on: `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    super::exit(compare(args))
}

fn compare(args: &Args) -> Result<()> {
    let (_, device) = args.device.open()?;
    let examples: Vec<Example> =
        examples(&Task::ALL, args.seed, args.count).into_iter().map(|(_, example)| example).collect();
    let exact = Idefics::from_folder(&args.model, &device, DType::F32, |_| ())?;
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is valid");
    let formats: Vec<_> = FORMATS.into_iter().filter(|(name, ..)| name.contains(&args.only)).collect();
    ensure!(
        !formats.is_empty(),
        "--only {:?} matches none of the formats {:?}",
        args.only,
        FORMATS.map(|(name, ..)| name)
    );
    let bar = ProgressBar::new((formats.len() * examples.len()) as u64).with_style(style);
    for (name, quantize, double_quant, dtype, activations) in formats {
        bar.set_message(name);
        let weights = WeightOptions {
            quantize: quantize.parse()?,
            double_quant,
            dtype: Some(dtype),
            activations,
            ..WeightOptions::default()
        };
        let model = Idefics::from_folder(&args.model, &device, weights, |_| ())?;
        let mut difference = Difference::default();
        for batch in examples.chunks(BATCH) {
            difference.add(&exact, &model, batch, &device)?;
            bar.inc(batch.len() as u64);
        }
        bar.suspend(|| difference.print(name, args));
    }
    bar.finish_and_clear();
    Ok(())
}

/// Accumulated differences between a model and the exact model in f32.
#[derive(Default)]
struct Difference {
    examples: usize,
    changed_answers: usize,
    /// Number of tokens in the right answers.
    positions: usize,
    /// Sum over these positions of KL(exact ‖ model), in nats.
    divergence: f64,
    /// Number of positions where the most likely token differs.
    changed_tokens: usize,
}

impl Difference {
    fn add(&mut self, exact: &Idefics, model: &Idefics, examples: &[Example], device: &Device) -> Result<()> {
        let all: Vec<&Example> = examples.iter().collect();
        let (expected, found) = (answers(exact, &all)?, answers(model, &all)?);
        self.examples += examples.len();
        self.changed_answers += expected.iter().zip(&found).filter(|(expected, found)| expected != found).count();

        let (texts, images) = Data::new(exact.processor())?.texts(examples)?;
        let pad_token_id = exact.processor().tokenizer().pad_token_id_or_fallback();
        let batch = TrainingBatch::padded(&texts, images.concat(), LabelRecipe::IgnoreImageTokens, pad_token_id)?;
        let [expected, found] = [exact, model].map(|model| predictions(model, &batch, device));
        let (expected, found) = (expected?, found?); // [positions, vocab_size]
        self.positions += expected.dims()[0];
        let likeliest = |log_probs: &Tensor<2>| log_probs.clone().argmax(1);
        self.changed_tokens +=
            likeliest(&expected).not_equal(likeliest(&found)).int().sum().into_scalar::<i64>() as usize;
        let divergence = (expected.clone().exp() * (expected - found)).sum();
        self.divergence += f64::from(divergence.into_scalar::<f32>());
        Ok(())
    }

    fn print(&self, name: &str, args: &Args) {
        let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
        let answers = percent(self.changed_answers, self.examples);
        let tokens = percent(self.changed_tokens, self.positions);
        let divergence = self.divergence / self.positions.max(1) as f64;
        if args.json {
            println!(
                "{}",
                serde_json::json!({"format": name, "answers": self.examples, "changed_answers": self.changed_answers,
                    "positions": self.positions, "changed_tokens": self.changed_tokens, "mean_kl": divergence})
            );
        } else {
            println!(
                "{name:<24} {:>4} of {} answers changed ({answers:.1} %), {tokens:.2} % of tokens, mean KL {divergence:.2e}",
                self.changed_answers, self.examples
            );
        }
    }
}

/// Computes the log-probabilities at the positions that predict a token of the answer, `[positions, vocab_size]`.
fn predictions(model: &Idefics, batch: &TrainingBatch, device: &Device) -> Result<Tensor<2>> {
    let logits = model.model().forward(&batch.prompts, &batch.images, LogitsToKeep::All)?;
    let [rows, seq, vocab_size] = logits.dims();
    let labels = batch.labels.iter().enumerate();
    let predictors: Vec<i32> = labels.filter(|(_, label)| **label >= 0).map(|(slot, _)| slot as i32 - 1).collect();
    let predictors = Tensor::<1, Int>::from_data(TensorData::from(predictors.as_slice()), (device, DType::I32));
    let logits = logits.reshape([rows * seq, vocab_size]).select(0, predictors);
    Ok(log_softmax(logits, 1))
}
