//! `idefics batch`

mod journal;
mod rows;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use idefics_generate::processor::Sample;
use idefics_generate::{Answer, CancelToken, Error, FinishReason, GenerationConfig, Idefics, Prepared};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::args::{BatchArgs, Global};
use crate::failure::Failure;
use crate::{commands, model};

use journal::{Done, Journal, Opened};
use rows::{InputRow, Name, hex};

/// Bytes of both ends of a weight file by which a model is known.
const ENDS: u64 = 64 << 10;

/// Answers every line of the input; what was done before is not done again.
pub(crate) fn run(global: &Global, args: &BatchArgs) -> Result<(), Failure> {
    let (rows, input) = rows::read(&args.input)?;
    let folder = model::folder(global)?;
    let run = run_digest(global, args, folder.path())?;
    let options = args.generation.options().over(&GenerationConfig::from_folder(folder.path())?);
    options.validate().map_err(Error::from)?; // before anything is written
    let (mut journal, mut done) = match Journal::open(&args.output, &run, &input, args.restart)? {
        Opened::Complete(rows) => {
            eprintln!("{}: complete already", args.output.display());
            return verdict(rows.iter());
        }
        Opened::Journal(journal, done) => (journal, done),
    };
    let asked: HashMap<&Name, &str> = rows.iter().map(|row| (&row.name, row.digest.as_str())).collect();
    let gone = done.keys().filter(|name| !asked.contains_key(name)).count();
    if gone > 0 {
        eprintln!("warning: {gone} rows that were done are not in {} any more", args.input.display());
    }
    done.retain(|name, done| asked.get(name) == Some(&done.input.as_str()));

    let model = model::load_from(global, folder)?;
    commands::warn(global, &model, &args.generation.options());
    let cancel = model::cancel_on_interrupt();
    let bar = progress_bar(rows.len());
    bar.inc(done.len() as u64);
    let groups: Vec<Vec<&InputRow>> = groups(&rows, args.batch_size.get(), &model)
        .into_iter()
        .map(|group| group.into_iter().filter(|row| !done.contains_key(&row.name)).collect::<Vec<_>>())
        .filter(|group| !group.is_empty())
        .collect();
    model.prepare_ahead(groups.into_iter().map(Group::of), &args.generation.process(), |group, prepared| {
        let answered = answer_group(global, args, &model, &group, prepared, &cancel)?;
        journal.keep(&answered)?;
        bar.inc(group.rows.len() as u64);
        done.extend(answered.into_iter().map(|row| (row.name.clone(), row)));
        Ok::<_, Failure>(())
    })?;
    bar.finish_and_clear();
    let in_order: Vec<&Done> = rows.iter().filter_map(|row| done.get(&row.name)).collect();
    journal.finish(&in_order, &run, &input)?;
    verdict(in_order.iter().map(|done| &done.row))
}

/// Whether some rows failed.
fn verdict<'r>(rows: impl ExactSizeIterator<Item = &'r Value>) -> Result<(), Failure> {
    let n_rows = rows.len();
    match rows.filter(|row| row.get("error").is_some()).count() {
        0 => Ok(()),
        n_failed => Err(Failure::some_failed(n_failed, n_rows)),
    }
}

/// Rows that are answered together.
struct Group<'r> {
    rows: Vec<&'r InputRow>,
    /// Those of the rows that have one.
    samples: Vec<Sample>,
}

impl<'r> Group<'r> {
    fn of(rows: Vec<&'r InputRow>) -> Self {
        let samples = rows.iter().filter_map(|row| row.sample.clone().ok()).collect();
        Self { rows, samples }
    }
}

impl AsRef<[Sample]> for Group<'_> {
    fn as_ref(&self) -> &[Sample] {
        &self.samples
    }
}

/// Rows of similar length together, the longest first: what does not fit shows at once. Which rows are together depends
/// on the input alone.
fn groups<'r>(rows: &'r [InputRow], batch_size: usize, model: &Idefics) -> Vec<Vec<&'r InputRow>> {
    let mut by_length: Vec<&InputRow> = rows.iter().collect();
    let tokens_per_image = model.processor().image_seq_len();
    by_length.sort_by_key(|row| std::cmp::Reverse(row.length(tokens_per_image)));
    by_length.chunks(batch_size).map(<[_]>::to_vec).collect()
}

/// Answers the rows of a group together, or one by one where one of them is at fault.
fn answer_group(
    global: &Global,
    args: &BatchArgs,
    model: &Idefics,
    Group { rows: group, samples }: &Group<'_>,
    prepared: Result<Prepared<'_>, Error>,
    cancel: &CancelToken,
) -> Result<Vec<Done>, Failure> {
    let generate = |prepared: Result<Prepared<'_>, Error>| {
        let controls = args.generation.controls(global, cancel);
        prepared?.generate(&args.generation.options(), controls)
    };
    let together = match samples.is_empty() {
        true => Some(Vec::new()),
        false => generate(prepared).ok(),
    };
    let n_answers = together.as_ref().map_or(1, |answers| answers.len() / samples.len().max(1));
    let mut together = together.map(|answers| {
        let mut answers = answers.into_iter();
        std::iter::from_fn(move || Some(answers.by_ref().take(n_answers).collect::<Vec<Answer>>()))
    });
    let mut rows = Vec::with_capacity(group.len());
    for row in group {
        let result = match (&row.sample, &mut together) {
            (Err(reason), _) => Err(Failure::input(reason.clone())),
            (Ok(_), Some(answers)) => Ok(answers.next().unwrap_or_default()),
            (Ok(sample), None) => {
                let alone = model.prepare(std::slice::from_ref(sample), &args.generation.process());
                generate(alone).map_err(Failure::of_sample)
            }
        };
        let row_of_output = match result {
            Ok(answers) if answers.iter().any(|answer| answer.finish_reason == FinishReason::Cancelled) => {
                return Err(Failure::interrupted());
            }
            Ok(answers) => answer_line(&row.name, &answers)?,
            Err(failure) if failure.is_of_one_input() => {
                line(&row.name, [("error".to_owned(), failure.message().into())])?
            }
            Err(failure) => return Err(failure),
        };
        rows.push(Done { name: row.name.clone(), input: row.digest.clone(), row: row_of_output });
    }
    Ok(rows)
}

/// A line of the output.
fn line(name: &Name, of_row: impl IntoIterator<Item = (String, Value)>) -> Result<Value, Failure> {
    let mut line = serde_json::to_value(name).map_err(std::io::Error::from)?;
    if let Some(line) = line.as_object_mut() {
        line.extend(of_row);
    }
    Ok(line)
}

/// The answer without its times, which are of the whole group and never the same twice.
fn answer_line(name: &Name, answers: &[Answer]) -> Result<Value, Failure> {
    let mut objects = Vec::with_capacity(answers.len());
    for answer in answers {
        let mut object = serde_json::to_value(answer).map_err(std::io::Error::from)?;
        if let Some(object) = object.as_object_mut() {
            object.shift_remove("timings");
        }
        objects.push(object);
    }
    match objects.as_slice() {
        [Value::Object(answer)] => line(name, answer.clone()),
        _ => line(name, [("answers".to_owned(), objects.into())]),
    }
}

/// Everything that the rows depend on together: the model, the options, this program.
fn run_digest(global: &Global, args: &BatchArgs, folder: &Path) -> Result<String, Failure> {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    let Global { device, dtype, quantize, double_quant, quantize_vision, quantize_head, activations, seed, .. } =
        global;
    digest.update(format!("{device:?} {dtype:?} {quantize} {double_quant} {quantize_vision} {quantize_head}"));
    digest.update(format!("{activations:?} "));
    digest.update(format!("{:?} {:?} {seed} {}", global.device_map, global.max_memory, args.batch_size));
    digest.update(format!("{:?}", args.generation));
    let failed = |error: std::io::Error| Failure::file_system(format!("{}: {error}", folder.display()));
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>())
        .map_err(failed)?;
    names.sort();
    for path in names.into_iter().filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut file = File::open(&path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        digest.update(format!("{name} {len}"));
        let mut ends = Vec::new();
        file.by_ref().take(ENDS).read_to_end(&mut ends).map_err(failed)?;
        file.seek(SeekFrom::Start(len.saturating_sub(ENDS))).map_err(failed)?;
        file.take(ENDS).read_to_end(&mut ends).map_err(failed)?;
        digest.update(&ends);
    }
    Ok(hex(digest))
}

/// Rows, their rate and the time left, on standard error if that is a terminal.
fn progress_bar(rows: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{pos}/{len} rows {wide_bar} {per_sec} {eta} left")
        .expect("the template is valid");
    ProgressBar::new(rows as u64).with_style(style)
}
