//! `cargo xtask eval-demo`: measures the accuracy of the built-in model on unseen scenes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use idefics_demo::{Example, Form, Purpose, Task};
use idefics_generate::processor::ProcessOptions;
use idefics_generate::{CancelToken, DeviceChoice, GenerationConfig, Idefics, Precision};
use indicatif::{ProgressBar, ProgressStyle};
use rand::seq::SliceRandom;
use serde::Serialize;

use super::data::sample;

/// Batch size.
const BATCH: usize = 32;
/// Maximum length of an answer in tokens. All right answers are shorter.
const MAX_NEW_TOKENS: usize = 48;

/// Measure the accuracy of the built-in model on scenes that were not used in training.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask eval-demo --seed 7 --count 1000\n  \
    cargo xtask eval-demo --seed 7 --count 1000 --shuffle\n  \
    cargo xtask eval-demo --count 100 --export target/cases/demo")]
pub(crate) struct Args {
    /// Model folder.
    #[arg(long, default_value = "idefics-demo/model")]
    model: PathBuf,
    /// Seed of the scenes. Training uses other random streams, so no seed repeats scenes of the training.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of examples per group of tasks.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Shuffle the images among the prompts. This lowers the accuracy of a model that uses its images.
    #[arg(long)]
    shuffle: bool,
    /// Print wrong answers to standard error.
    #[arg(long)]
    wrong: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
    /// Instead of measuring, write the examples into this folder as a case for the reference.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Device to compute on: `auto`, `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
}

/// A group of tasks with a common score.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) name: &'static str,
    tasks: &'static [Task],
}

pub(super) const GROUPS: [Group; 4] = [
    Group { name: "captions", tasks: &[Task::Caption, Task::PromptedCaption] },
    Group {
        name: "questions",
        tasks: &[Task::Colour, Task::Shape, Task::Count, Task::Place, Task::Comparison, Task::YesNo],
    },
    Group { name: "classification", tasks: &[Task::Classification] },
    Group { name: "two pictures", tasks: &[Task::TwoPictures] },
];

/// The number of exactly right answers in a task or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Score {
    /// Name of the task or group.
    pub(super) task: &'static str,
    pub(super) right: usize,
    pub(super) count: usize,
}

impl Score {
    pub(super) fn percent(&self) -> f64 {
        100.0 * self.right as f64 / self.count.max(1) as f64
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    super::exit(evaluate(args))
}

fn evaluate(args: &Args) -> Result<()> {
    if let Some(folder) = &args.export {
        let all = examples(&Task::ALL, args.seed, args.count);
        let all: Vec<Example> = all.into_iter().map(|(_, example)| example).collect();
        return super::export::write(folder, &args.model, &all, MAX_NEW_TOKENS);
    }
    let (choice, device) = args.device.open()?;
    let model = Idefics::from_folder(&args.model, &device, Precision::F32.dtype_on(choice, &device)?, |_| ())?;
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is valid");
    let bar = ProgressBar::new((GROUPS.len() * args.count) as u64).with_style(style);
    bar.set_message("answering");
    for group in GROUPS {
        let (total, by_task) = score(&model, group, args, &bar)?;
        bar.suspend(|| {
            print(args, &total, "");
            if by_task.len() > 1 {
                by_task.iter().for_each(|score| print(args, score, "  "));
            }
        });
    }
    bar.finish_and_clear();
    Ok(())
}

fn print(args: &Args, score: &Score, indent: &str) {
    if args.json {
        let group = indent.is_empty();
        println!(
            "{}",
            serde_json::json!({"task": score.task, "group": group, "right": score.right, "count": score.count,
                "percent": score.percent(), "shuffle": args.shuffle, "seed": args.seed})
        );
    } else {
        println!(
            "{:<24} {:>5} of {:>5} {:>6.1} %",
            format!("{indent}{}", score.task),
            score.right,
            score.count,
            score.percent()
        );
    }
}

/// Returns the score of a group, and of each task in it.
fn score(model: &Idefics, group: Group, args: &Args, bar: &ProgressBar) -> Result<(Score, Vec<Score>)> {
    let mut examples = examples(group.tasks, args.seed, args.count);
    if args.shuffle {
        shuffle_pictures(&mut examples, args.seed);
    }
    let mut by_task: Vec<Score> =
        group.tasks.iter().map(|task| Score { task: task.name(), right: 0, count: 0 }).collect();
    for batch in examples.chunks(BATCH) {
        let answers = answers(model, &batch.iter().map(|(_, example)| example).collect::<Vec<_>>())?;
        for ((task_idx, example), answer) in batch.iter().zip(answers) {
            let (answer, right) = (answer.trim(), right_answer(example).trim());
            by_task[*task_idx].count += 1;
            by_task[*task_idx].right += usize::from(answer == right);
            if args.wrong && answer != right {
                bar.suspend(|| eprintln!("{}: {answer:?}; expected {right:?}", asked(example)));
            }
        }
        bar.inc(batch.len() as u64);
    }
    let right = by_task.iter().map(|score| score.right).sum();
    Ok((Score { task: group.name, right, count: examples.len() }, by_task))
}

/// Creates `count` examples that cycle through the tasks, each with the index of its task.
pub(super) fn examples(tasks: &[Task], seed: u64, count: usize) -> Vec<(usize, Example)> {
    let example = |index: usize| {
        let task_idx = index % tasks.len();
        let task = tasks[task_idx];
        // Each task has its own random stream, so that groups do not share scenes.
        let stream = task as u64 * 1_000_000_000 + index as u64;
        (task_idx, Example::single(&mut idefics_demo::rng(Purpose::Evaluation, seed, stream), task))
    };
    (0..count).map(example).collect()
}

/// Replaces the images of each example by those of another example.
fn shuffle_pictures(examples: &mut [(usize, Example)], seed: u64) {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.shuffle(&mut idefics_demo::rng(Purpose::Evaluation, seed, u64::MAX));
    let scenes: Vec<_> = order.iter().map(|&from| examples[from].1.scenes.clone()).collect();
    // Each example gets the images of the next example in the shuffled cycle, so that no example keeps its own images.
    for (place, &to) in order.iter().enumerate() {
        examples[to].1.scenes.clone_from(&scenes[(place + 1) % scenes.len()]);
    }
}

/// Returns the model's answers, in the order of the examples.
pub(super) fn answers(model: &Idefics, examples: &[&Example]) -> Result<Vec<String>> {
    let samples = examples.iter().map(|example| sample(example, false)).collect::<Result<Vec<_>>>()?;
    let options = GenerationConfig { max_new_tokens: Some(MAX_NEW_TOKENS), ..GenerationConfig::default() };
    let answers = model.generate(&samples, &ProcessOptions::default(), &options, CancelToken::default())?;
    Ok(answers.into_iter().map(|answer| answer.text).collect())
}

fn asked(example: &Example) -> &str {
    match &example.form {
        Form::Chat(exchanges) => &exchanges[0].question,
        Form::Continuation { prompt, .. } => prompt,
    }
}

fn right_answer(example: &Example) -> &str {
    match &example.form {
        Form::Chat(exchanges) => &exchanges[0].answer,
        Form::Continuation { answer, .. } => answer,
    }
}

/// Measures the scores of a model folder on `count` examples of each group.
pub(super) fn scores(folder: &Path, device: &burn::tensor::Device, seed: u64, count: usize) -> Result<Vec<Score>> {
    let model =
        Idefics::from_folder(folder, device, burn::tensor::DType::F32, |_| ()).context("cannot load the model")?;
    let args = Args {
        model: folder.to_owned(),
        seed,
        count,
        shuffle: false,
        wrong: false,
        json: false,
        export: None,
        device: DeviceChoice::Cpu,
    };
    GROUPS.iter().map(|&group| Ok(score(&model, group, &args, &ProgressBar::hidden())?.0)).collect()
}
