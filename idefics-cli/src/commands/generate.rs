//! `idefics generate`

use std::collections::BTreeSet;
use std::path::Path;

use idefics_generate::processor::Sample;
use serde_json::Value;

use crate::args::{GenerateArgs, Global};
use crate::failure::Failure;
use crate::input::Input;
use crate::{commands, media, output, signals};

/// Runs one sample and streams its text, or runs a batch of samples.
pub(crate) fn run(global: &Global, args: &GenerateArgs) -> Result<(), Failure> {
    let prompts = read(&args.prompt_file)?;
    let samples = match &prompts {
        Prompts::One(sample) => std::slice::from_ref(sample),
        Prompts::Batch(samples) => samples,
    };
    if args.sources.allows_all_files() {
        samples.iter().try_for_each(|sample| commands::check_images(sample.images()))?;
        samples.iter().try_for_each(|sample| commands::check_videos(sample.videos()))?;
    }
    let options = args.generation.options();
    let grammar = args.grammar.grammar(&options)?;
    let model = commands::load(global, &options)?;
    let grammar = commands::compile(&model, grammar.as_ref())?;
    media::warn_about_rates(samples, &model, &args.process(global));
    let cancel = signals::cancel();
    match &prompts {
        Prompts::One(sample) => {
            let prepared = model.prepare(std::slice::from_ref(sample), &args.process(global));
            output::answer_one(global, None, &model, prepared, &args.generation, grammar.as_ref(), &cancel)
        }
        Prompts::Batch(samples) => {
            let controls = args.generation.controls(global, grammar.as_ref(), &cancel);
            let (process, options) = (args.process(global), args.generation.options());
            let answers = model.generate_each(samples, &process, &options, controls)?;
            output::print_batch(global, answers, samples.len(), grammar.is_some())
        }
    }
}

enum Prompts {
    One(Sample),
    Batch(Vec<Sample>),
}

/// Reads the samples. Image paths are relative to the folder of the file, or to the working folder for standard input.
fn read(path: &Path) -> Result<Prompts, Failure> {
    let input = Input::new(path);
    let rejected = |error: &dyn std::fmt::Display| Failure::input(format!("{}: {error}", input.name()));
    let mut passed_over = BTreeSet::new();
    let mut sample = |mut value: Value| {
        let sample = match &mut value {
            Value::Object(object) => {
                let sample = Sample::take_from(object);
                passed_over.extend(std::mem::take(object).into_iter().map(|(key, _)| key));
                sample
            }
            _ => Sample::try_from(value),
        };
        sample.map(|mut sample| {
            commands::warn_about_parts(&sample);
            sample.resolve_paths(input.folder());
            sample
        })
    };
    let prompts = match input.json()? {
        Value::Array(rows) if rows.is_empty() => return Err(rejected(&"the list of samples is empty")),
        Value::Array(rows) => {
            let samples = rows
                .into_iter()
                .enumerate()
                .map(|(row, value)| sample(value).map_err(|error| rejected(&format!("sample {row}: {error}"))));
            Prompts::Batch(samples.collect::<Result<_, _>>()?)
        }
        value => Prompts::One(sample(value).map_err(|error| rejected(&error))?),
    };
    // There is no warning for `id`, because the same files may be used with `batch`, where rows have ids.
    for key in passed_over.into_iter().filter(|key| key != "id") {
        match Sample::similar_key(&key) {
            Some(meant) => say!("warning: `{key}` of the samples is ignored; write `{meant}`"),
            None => say!("warning: `{key}` of the samples is ignored; `idefics batch` copies such keys to its output"),
        }
    }
    Ok(prompts)
}
