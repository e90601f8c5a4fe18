//! Saves the answers to the rows of a batch.

use idefics_generate::{Answer, AnswerSink, Error, FinishReason};
use serde_json::{Map, Value};

use super::Batch;
use super::groups::Group;
use super::output::Done;
use super::rows::InputRow;
use crate::failure::Failure;
use crate::output::{warn_about, warn_if_cut};

impl AnswerSink<Group> for Batch<'_> {
    type Error = Failure;

    fn answered(&mut self, group: &Group, sample: usize, answers: Result<Vec<Answer>, Error>) -> Result<(), Failure> {
        let mut asked = group.rows.iter().filter(|row| !row.is_done && row.row.sample.is_ok());
        let Some(row) = asked.nth(sample).map(|row| &row.row) else { return Ok(()) };
        let kept =
            done(row, answers.map_err(Failure::sample), self.has_grammar).and_then(|done| self.output.save(&[done]));
        self.exit_if_reading_a_pipe(kept)
    }

    fn finished(&mut self, group: Group) -> Result<(), Failure> {
        let invalid = group.rows.iter().filter(|row| !row.is_done).filter_map(|row| {
            let reason = row.row.sample.as_ref().err()?;
            Some(done(&row.row, Err(Failure::input(reason.clone())), self.has_grammar))
        });
        let kept = invalid.collect::<Result<Vec<Done>, Failure>>().and_then(|invalid| self.finish(group, &invalid));
        self.exit_if_reading_a_pipe(kept)
    }
}

/// Returns the output line of a row.
fn done(row: &InputRow, answers: Result<Vec<Answer>, Failure>, has_grammar: bool) -> Result<Done, Failure> {
    let (values, is_error) = match answers {
        Ok(answers) if answers.iter().any(|answer| answer.finish_reason == FinishReason::Cancelled) => {
            return Err(Failure::interrupted());
        }
        Ok(answers) => {
            answers.iter().for_each(warn_about);
            answers.iter().for_each(|answer| warn_if_cut(has_grammar, answer));
            (answers_json(&answers)?, false)
        }
        Err(failure) if failure.affects_one_input() => {
            (Map::from_iter([("error".to_owned(), failure.message().into())]), true)
        }
        Err(failure) => return Err(failure),
    };
    let (index, input, name) = (row.index, row.digest.clone(), row.name.clone());
    Ok(Done { index, input, name, line: line(row, values), is_error })
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
