//! `idefics generate`

use std::path::Path;

use idefics_generate::processor::Sample;
use serde::Deserialize;

use crate::args::{GenerateArgs, Global};
use crate::failure::Failure;
use crate::input::Input;
use crate::{commands, model, output, signals};

/// Runs a sample, streaming its text, or a batch of samples.
pub(crate) fn run(global: &Global, args: &GenerateArgs) -> Result<(), Failure> {
    let prompts = read(&args.prompt_file)?;
    let samples = match &prompts {
        Prompts::One(sample) => std::slice::from_ref(sample),
        Prompts::Batch(samples) => samples,
    };
    if args.sources.allows_all_files() {
        samples.iter().try_for_each(|sample| commands::check_images(sample.images()))?;
    }
    let model = model::load(global)?;
    commands::warn(global, &model, &args.generation.options());
    let cancel = signals::cancel();
    match &prompts {
        Prompts::One(sample) => {
            let prepared = model.prepare(std::slice::from_ref(sample), &args.process(global));
            output::answer_one(global, None, &model, prepared, &args.generation, &cancel)
        }
        Prompts::Batch(samples) => {
            let controls = args.generation.controls(global, &cancel);
            let (process, options) = (args.process(global), args.generation.options());
            let answers = model.generate_each(samples, &process, &options, controls)?;
            output::print_batch(global, answers, samples.len())
        }
    }
}

enum Prompts {
    One(Sample),
    Batch(Vec<Sample>),
}

/// Reads the samples; their paths are relative to the file, or to the working folder if they come from standard input.
fn read(path: &Path) -> Result<Prompts, Failure> {
    let input = Input::new(path);
    let rejected = |error: &dyn std::fmt::Display| Failure::input(format!("{}: {error}", input.name()));
    let sample = |value: serde_json::Value| {
        Sample::deserialize(value).map(|mut sample| {
            sample.resolve_paths(input.folder());
            sample
        })
    };
    match input.json()? {
        serde_json::Value::Array(rows) if rows.is_empty() => Err(rejected(&"the list holds no sample")),
        serde_json::Value::Array(rows) => {
            let samples = rows
                .into_iter()
                .enumerate()
                .map(|(row, value)| sample(value).map_err(|error| rejected(&format!("sample {row}: {error}"))));
            Ok(Prompts::Batch(samples.collect::<Result<_, _>>()?))
        }
        value => Ok(Prompts::One(sample(value).map_err(|error| rejected(&error))?)),
    }
}
