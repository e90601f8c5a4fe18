//! Answers the rows of a group and formats the output lines.

use idefics_generate::{Answer, CancelToken, CompiledGrammar, Error, FinishReason, Idefics, Prepared};
use serde_json::{Map, Value};

use super::groups::Group;
use super::output::Done;
use super::rows::InputRow;
use crate::args::{BatchArgs, Global};
use crate::failure::Failure;
use crate::output::{warn_about, warn_if_cut};

/// The result of answering a group.
pub(super) struct Answered {
    pub(super) rows: Vec<Done>,
    /// Whether a signal stopped the work before all rows were answered.
    pub(super) is_interrupted: bool,
}

/// Answers the rows of a group that are not done yet. They run as one batch, or one by one if the batch cannot start
/// because a row is invalid.
pub(super) fn answer(
    global: &Global,
    args: &BatchArgs,
    model: &Idefics,
    grammar: Option<&CompiledGrammar>,
    group: &Group,
    prepared: Result<Prepared<'_>, Error>,
    cancel: &CancelToken,
) -> Result<Answered, Failure> {
    let generate = |prepared: Result<Prepared<'_>, Error>| {
        let controls = args.generation.controls(global, grammar, cancel);
        prepared?.generate_each(&args.generation.options(), controls)
    };
    let n_samples = group.samples.len();
    let together = match n_samples {
        0 => Some(Vec::new()),
        _ => generate(prepared).ok(),
    };
    let n_answers = together.as_ref().map_or(1, |answers| answers.len() / n_samples.max(1));
    let mut together = together.map(|answers| {
        let mut answers = answers.into_iter();
        std::iter::from_fn(move || Some(answers.by_ref().take(n_answers).collect::<Vec<_>>()))
    });
    let mut answered = Answered { rows: Vec::with_capacity(group.rows.len()), is_interrupted: false };
    for row in group.rows.iter().filter(|row| !row.is_done).map(|row| &row.row) {
        let result = match (&row.sample, &mut together) {
            (Err(reason), _) => Err(Failure::input(reason.clone())),
            (Ok(_), Some(answers)) => collect_answers(answers.next().unwrap_or_default()),
            (Ok(_), None) if cancel.is_cancelled() => Err(Failure::interrupted()),
            (Ok(sample), None) => {
                let alone = model.prepare(std::slice::from_ref(sample), &args.process(global));
                generate(alone).map_err(Failure::sample).and_then(collect_answers)
            }
        };
        let line = match result {
            Ok(answers) if answers.iter().any(|answer| answer.finish_reason == FinishReason::Cancelled) => None,
            Ok(answers) => {
                answers.iter().for_each(warn_about);
                answers.iter().for_each(|answer| warn_if_cut(grammar.is_some(), answer));
                Some((line(row, answers_json(&answers)?), false))
            }
            Err(failure) if failure.affects_one_input() => {
                Some((line(row, Map::from_iter([("error".to_owned(), failure.message().into())])), true))
            }
            Err(failure) if failure.is_interruption() => None,
            Err(failure) => return Err(failure),
        };
        match line {
            Some((line, is_error)) => {
                let (index, input, name) = (row.index, row.digest.clone(), row.name.clone());
                answered.rows.push(Done { index, input, name, line, is_error });
            }
            None => answered.is_interrupted = true,
        }
    }
    Ok(answered)
}

/// Returns all answers to a row, or the first error among them.
fn collect_answers(answers: Vec<Result<Answer, Error>>) -> Result<Vec<Answer>, Failure> {
    answers.into_iter().collect::<Result<_, _>>().map_err(Failure::sample)
}

/// Formats an output line: the row's name, the user's own keys, and the keys of `values`.
fn line(row: &InputRow, values: Map<String, Value>) -> String {
    let own = row.own.iter().map(|(key, json)| (key.as_str(), json.clone()));
    row.name.line(own.chain(values.iter().map(|(key, value)| (key.as_str(), value.to_string()))))
}

/// Converts the answers to a row to JSON. `timings` is left out, because it applies to the whole group and differs
/// between runs. Several answers become a list under `answers`.
fn answers_json(answers: &[Answer]) -> Result<Map<String, Value>, Failure> {
    let mut objects = Vec::with_capacity(answers.len());
    for answer in answers {
        let mut object = serde_json::to_value(answer).map_err(std::io::Error::from)?;
        if let Some(object) = object.as_object_mut() {
            object.shift_remove("timings");
        }
        objects.push(object);
    }
    match objects.as_mut_slice() {
        [Value::Object(answer)] => Ok(std::mem::take(answer)),
        _ => Ok(Map::from_iter([("answers".to_owned(), objects.into())])),
    }
}
