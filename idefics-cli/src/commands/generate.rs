//! `idefics generate`

use std::io::Read;
use std::path::Path;

use idefics_generate::processor::Sample;
use serde::Deserialize;

use crate::args::{GenerateArgs, Global};
use crate::failure::Failure;
use crate::{commands, model, output};

/// Runs a sample, streaming its text, or a batch of samples.
pub(crate) fn run(global: &Global, args: &GenerateArgs) -> Result<(), Failure> {
    let prompts = read(&args.prompt_file)?;
    let samples = match &prompts {
        Prompts::One(sample) => std::slice::from_ref(sample),
        Prompts::Batch(samples) => samples,
    };
    samples.iter().try_for_each(|sample| commands::check_images(sample.images()))?;
    let model = model::load(global)?;
    commands::warn(global, &model, &args.generation.options());
    let cancel = model::cancel_on_interrupt();
    match &prompts {
        Prompts::One(sample) => {
            let prepared = model.prepare(std::slice::from_ref(sample), &args.generation.process());
            output::answer_one(global, None, &model, prepared, &args.generation, &cancel)
        }
        Prompts::Batch(samples) => {
            let controls = args.generation.controls(global, &cancel);
            let answers = model.generate(samples, &args.generation.process(), &args.generation.options(), controls)?;
            output::print_batch(global, &answers, samples.len())
        }
    }
}

enum Prompts {
    One(Sample),
    Batch(Vec<Sample>),
}

/// Reads the samples; their paths are relative to the file, or to the working folder if they come from standard input.
fn read(path: &Path) -> Result<Prompts, Failure> {
    let (name, folder) = match path.to_str() {
        Some("-") => ("standard input".to_owned(), Path::new("")),
        _ => (path.display().to_string(), path.parent().unwrap_or(Path::new(""))),
    };
    let mut text = Vec::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().read_to_end(&mut text).map(|_| ()),
        _ => std::fs::read(path).map(|bytes| text = bytes),
    };
    read.map_err(|error| Failure::file_system(format!("{name}: {error}")))?;

    let rejected = |error: &dyn std::fmt::Display| Failure::input(format!("{name}: {error}"));
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| rejected(&error))?;
    let sample = |value: serde_json::Value| {
        Sample::deserialize(value).map(|mut sample| {
            sample.resolve_paths(folder);
            sample
        })
    };
    match value {
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
