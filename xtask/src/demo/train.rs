//! `cargo xtask train-demo`: trains the built-in model from scratch.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{DType, Device};
use idefics_checkpoint::write_atomically;
use idefics_generate::nn::checkpoint::save;
use idefics_generate::processor::Processor;
use idefics_generate::{DeviceChoice, Idefics2, Idefics2Config, ModelConfig};
use idefics_train::{
    AdamWConfig, BatchError, LossGradients, Schedule, StepReport, Trainable, Trainer, TrainingConfig, WeightDecay,
};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::data::{Data, PICTURES};
use super::tower::{self, PatchClassifier};
use super::{card, eval, folder, init, tokenizer};

/// Train the built-in model from scratch on drawn scenes.
///
/// If a run was stopped, the same command resumes it from its last checkpoint.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask train-demo\n  \
    cargo xtask train-demo --out target/short --tower-steps 20 --steps 20 --more-steps 10 --save-every 10")]
pub(crate) struct Args {
    /// Folder to write the model folder, the checkpoints and the metrics to.
    #[arg(long, default_value = "target/train-demo")]
    pub(super) out: PathBuf,
    /// Number of steps that pretrain the vision tower.
    #[arg(long, default_value_t = 4000)]
    pub(super) tower_steps: u64,
    /// Number of steps that train connector and decoder, with the tower frozen.
    #[arg(long, default_value_t = 9000)]
    pub(super) steps: u64,
    /// How many of the first --steps use only captions.
    #[arg(long, default_value_t = 1500)]
    caption_steps: u64,
    /// Numbers of steps of further rounds. Each round restarts the learning-rate schedule at two thirds of the previous
    /// rate.
    #[arg(long, value_delimiter = ',', default_value = "4000,3000")]
    pub(super) more_steps: Vec<u64>,
    /// Number of micro-batches of eight images per step, computed in parallel.
    #[arg(long, default_value = "2")]
    workers: NonZeroUsize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1.5e-3)]
    pub(super) learning_rate: f64,
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Number of steps between checkpoints.
    #[arg(long, default_value_t = 250)]
    save_every: u64,
    /// Number of steps between evaluations on unseen scenes.
    #[arg(long, default_value_t = 1000)]
    eval_every: u64,
    /// Number of examples per group of tasks for the final evaluation.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Device to compute on: `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cpu")]
    pub(super) device: DeviceChoice,
}

impl Args {
    pub(super) fn pictures_per_step(&self) -> usize {
        PICTURES * self.workers.get()
    }

    /// Checks that a resumed run has the same options as before. Saves the options of a new run.
    fn check_unchanged(&self) -> Result<()> {
        let ours = json!({
            "seed": self.seed,
            "workers": self.workers.get(),
            "learning_rate": self.learning_rate,
            "tower_steps": self.tower_steps,
            "steps": self.steps,
            "caption_steps": self.caption_steps,
            "more_steps": self.more_steps,
        });
        let path = self.out.join("run.json");
        if !path.exists() {
            let text = serde_json::to_vec_pretty(&ours)?;
            return Ok(write_atomically(&path, |file| file.write_all(&text))?);
        }
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let theirs: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        for (option, value) in ours.as_object().into_iter().flatten() {
            let found = &theirs[option];
            ensure!(
                found == value,
                "{}: the run was started with `{option}` {found}, not {value}; give the same value or another --out",
                path.display()
            );
        }
        Ok(())
    }

    /// Returns the rounds that train connector and decoder.
    pub(super) fn rounds(&self) -> Vec<Round> {
        let mut first_step = 0;
        let all = std::iter::once(self.steps).chain(self.more_steps.iter().copied());
        all.enumerate()
            .map(|(index, steps)| {
                let round = Round { name: format!("round-{}", index + 1), first_step, steps };
                first_step += steps;
                round
            })
            .collect()
    }
}

/// A round of training of connector and decoder, with its own cosine schedule.
pub(super) struct Round {
    /// Name of the round in the metrics, and name of its folder.
    pub(super) name: String,
    /// Index of the first step of the round in the training data.
    pub(super) first_step: u64,
    pub(super) steps: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    super::exit(train(args))
}

fn train(args: &Args) -> Result<()> {
    let (_, device) = args.device.open()?;
    let model_folder = args.out.join("model");
    std::fs::create_dir_all(&model_folder).with_context(|| model_folder.display().to_string())?;
    args.check_unchanged()?;
    if !model_folder.join("config.json").exists() {
        let vocab_size = tokenizer::train(&model_folder, args.seed)?;
        folder::write(&model_folder, vocab_size)?;
    }
    let config = ModelConfig::from_folder(&model_folder)?;
    let config = config.downcast_ref::<Idefics2Config>().expect("the configuration was written above").clone();
    let metrics = Metrics::open(&args.out.join("metrics.jsonl"))?;
    let mut session = Session { args, device: device.clone(), metrics };

    let model = trained_tower(&mut session, &config)?;
    let model = trained_model(&mut session, model, &model_folder)?;
    save(&model, &model_folder.join("model.safetensors"), DType::BF16, &[])?;
    let scores = eval::scores(&model_folder, &device, EVAL_SEED, args.count)?;
    card::write(args, &model_folder, &scores, model.num_params())?;
    for score in &scores {
        println!("{:<16} {:.1} %", score.task, score.percent());
    }
    println!("{}", model_folder.display());
    Ok(())
}

/// Returns a model with a pretrained vision tower and otherwise random weights.
fn trained_tower(session: &mut Session<'_>, config: &Idefics2Config) -> Result<Idefics2> {
    let (args, device) = (session.args, session.device.clone());
    let vision_config = &config.vision_config;
    let run = Run {
        name: "tower".into(),
        folder: args.out.join("tower"),
        total_steps: args.tower_steps,
        learning_rate: args.learning_rate,
        frozen: &[],
        first_step: 0,
    };
    let start = PatchClassifier::new(vision_config, &device.clone().autodiff())?;
    let start = init::draw(start, vision_config.num_hidden_layers, &device, args.seed);
    let sheets = args.tower_steps * args.workers.get() as u64 / 2;
    let batch = |index| tower::micro_batch(vision_config, args.seed, TOWER_STREAM + index, index < sheets);
    let classifier = run.train(session, start, batch, PatchClassifier::training_gradients, |_, _| Ok(None))?;
    let model = Idefics2::new(config, &device.clone().autodiff())?;
    let mut model = init::draw(model, config.text_config.num_hidden_layers, &device, args.seed + 1);
    model.model.vision_model = classifier.vision_model;
    Ok(model)
}

/// Trains connector and decoder in all rounds, with the tower frozen. Each round continues from the weights of the
/// previous round.
fn trained_model(session: &mut Session<'_>, start: Idefics2, model_folder: &Path) -> Result<Idefics2> {
    let (args, device) = (session.args, session.device.clone());
    let processor = Processor::from_folder(model_folder)?;
    let data = Data::new(&processor)?;
    let rounds: Vec<Run> = args
        .rounds()
        .into_iter()
        .enumerate()
        .map(|(index, Round { name, first_step, steps })| Run {
            folder: args.out.join(&name),
            name,
            total_steps: steps,
            learning_rate: args.learning_rate * (2.0_f64 / 3.0).powi(index as i32),
            frozen: &["model.vision_model."],
            first_step,
        })
        .collect();
    rounds.iter().try_fold(start, |model, run| {
        let measure = |model: &Idefics2, step: u64| {
            if !step.is_multiple_of(args.eval_every) && step != run.total_steps {
                return Ok(None);
            }
            save(model, &model_folder.join("model.safetensors"), DType::BF16, &[])?;
            let scores = eval::scores(model_folder, &device, QUICK_EVAL_SEED, args.count.min(96))?;
            Ok(Some(scores.iter().map(|score| (score.task.to_owned(), json!(score.percent()))).collect::<Value>()))
        };
        let batch = |index| data.micro_batch(args.seed, index, index < args.caption_steps * args.workers.get() as u64);
        run.train(session, model, batch, Idefics2::training_gradients, measure)
    })
}

/// Seed of the scenes for the final evaluation.
pub(super) const EVAL_SEED: u64 = 1;
/// Seed of the scenes for evaluations during training.
const QUICK_EVAL_SEED: u64 = 2;
/// First random stream of the tower's training data. The rounds use only lower streams.
const TOWER_STREAM: u64 = 1 << 40;

/// State that all parts of the training share.
struct Session<'a> {
    args: &'a Args,
    device: Device,
    metrics: Metrics,
}

/// A part of the training: the vision tower, or one round.
struct Run {
    name: String,
    folder: PathBuf,
    total_steps: u64,
    learning_rate: f64,
    /// Name prefixes of the tensors that are not trained.
    frozen: &'static [&'static str],
    /// Index of the first step of this part in the training data.
    first_step: u64,
}

impl Run {
    fn config(&self, args: &Args) -> TrainingConfig {
        TrainingConfig {
            learning_rate: self.learning_rate,
            schedule: Schedule::Cosine,
            warmup_steps: (self.total_steps / 20).min(200),
            adamw: AdamWConfig {
                betas: [0.9, 0.98],
                weight_decay: WeightDecay::Matrices(0.05),
                ..AdamWConfig::default()
            },
            max_grad_norm: Some(1.0),
            frozen: self.frozen.iter().map(|prefix| (*prefix).to_owned()).collect(),
            seed: args.seed,
            workers: args.workers.get(),
            ..TrainingConfig::new(self.total_steps)
        }
    }

    /// Trains to the end, starting from the last checkpoint if there is one.
    fn train<M: Module + Sync, B: Send + Sync>(
        &self,
        session: &mut Session<'_>,
        start: M,
        micro_batch: impl Fn(u64) -> Result<B> + Sync,
        gradients: impl Fn(&M, &B) -> Result<LossGradients, BatchError> + Sync,
        measure: impl Fn(&M, u64) -> Result<Option<Value>>,
    ) -> Result<M> {
        let args = session.args;
        let mut trainer = match Trainer::resume(start.clone(), self.config(args), &self.folder, &session.device)? {
            Some(trainer) => trainer,
            None => Trainer::new(start, self.config(args))?,
        };
        let style = "{msg} {wide_bar} {pos}/{len} {eta}";
        let style = ProgressStyle::with_template(style).expect("the template is valid");
        let bar = ProgressBar::new(self.total_steps).with_style(style);
        bar.set_position(trainer.steps_done());
        bar.reset_eta();
        let n_micro = args.workers.get() as u64;
        while trainer.steps_done() < self.total_steps {
            let clock = Instant::now();
            let step = trainer.steps_done();
            let batches = (0..n_micro)
                .into_par_iter()
                .map(|micro| micro_batch((self.first_step + step) * n_micro + micro))
                .collect::<Result<Vec<B>>>()?;
            let report = trainer.step(&batches, &gradients)?;
            let seconds = clock.elapsed().as_secs_f64();
            let pictures_per_s = args.pictures_per_step() as f64 / seconds;
            bar.set_message(format!("{} loss {:.4} {pictures_per_s:.0} images/s", self.name, report.loss));
            bar.set_position(trainer.steps_done());

            let done = trainer.steps_done();
            let scores = measure(trainer.module(), done)?;
            session.metrics.add(&self.name, &report, seconds, scores)?;
            if done.is_multiple_of(args.save_every) || done == self.total_steps {
                trainer.save(&self.folder)?;
            }
        }
        bar.finish_and_clear();
        Ok(trainer.module().clone())
    }
}

/// The file `metrics.jsonl`, with one JSON object per step.
struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<File> {
            let mut file = File::options().create(true).read(true).append(true).open(path)?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            // Cuts off an incomplete line that a killed run left.
            let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            file.set_len(whole as u64)?;
            Ok(file)
        };
        let file = open().with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn add(&mut self, part: &str, report: &StepReport, seconds: f64, scores: Option<Value>) -> Result<()> {
        let mut line = serde_json::to_value(report)?;
        line["part"] = json!(part);
        line["step_seconds"] = json!(seconds);
        if let Some(scores) = scores {
            line["percent_right"] = scores;
        }
        let line = format!("{line}\n"); // a line is written in one call
        self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }
}
