//! Answers on standard output.

use std::io::{self, Write};

use idefics_generate::processor::{ProcessOptions, Sample};
use idefics_generate::{Answer, CancelToken, FinishReason, GenerationConfig, Idefics};

use crate::args::Global;
use crate::failure::Failure;

/// Answers one sample: `prefix` and text as it comes, or one JSON object.
pub(crate) fn answer_one(
    global: &Global,
    prefix: &str,
    model: &Idefics,
    sample: &Sample,
    process: &ProcessOptions,
    options: &GenerationConfig,
    cancel: &CancelToken,
) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let mut written = Ok(());
    let mut prefix = prefix.as_bytes(); // goes out with the first text: a sample that is refused prints nothing
    let answer = model.generate_streaming(sample, process, options, cancel, |chunk| {
        if !global.json && written.is_ok() {
            let text = [std::mem::take(&mut prefix), chunk.as_bytes()].concat();
            written = stdout.write_all(&text).and_then(|()| stdout.flush());
            if written.is_err() {
                cancel.cancel(); // nobody reads any more
            }
        }
    })?;
    written?;
    match global.json {
        true => print_json(&mut stdout, &answer)?,
        false => writeln!(stdout)?,
    }
    report(global, &answer);
    interrupted(&answer)
}

/// Prints the answers of a batch, each under its row's number, or as JSON lines.
pub(crate) fn print_batch(global: &Global, answers: &[Answer]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    for (row, answer) in answers.iter().enumerate() {
        match global.json {
            true => print_json(&mut stdout, answer)?,
            false => writeln!(stdout, "[{row}] {}", answer.text)?,
        }
        report(global, answer);
    }
    answers.iter().try_for_each(interrupted)
}

fn print_json(stdout: &mut impl Write, answer: &Answer) -> Result<(), Failure> {
    let line = serde_json::to_string(answer).map_err(io::Error::from)?;
    Ok(writeln!(stdout, "{line}")?)
}

fn report(global: &Global, answer: &Answer) {
    if global.verbose {
        let Answer { usage, timings, finish_reason, .. } = answer;
        eprintln!("{finish_reason:?}: {usage:?}, {timings:?}");
    }
}

fn interrupted(answer: &Answer) -> Result<(), Failure> {
    match answer.finish_reason {
        FinishReason::Cancelled => Err(Failure::interrupted()),
        _ => Ok(()),
    }
}
