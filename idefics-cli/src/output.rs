//! Answers on standard output.

use std::io::{self, Write};
use std::sync::Once;

use idefics_generate::{Answer, CancelToken, Error, FinishReason, Idefics, Prepared, Timings, Usage};
use serde_json::json;

use crate::args::{GenerationArgs, Global};
use crate::failure::Failure;

/// Answers one sample: text as it comes, or one JSON object an answer. `image` is the one of several that it is about:
/// its name stands before the text, or in the object.
pub(crate) fn answer_one(
    global: &Global,
    image: Option<&str>,
    model: &Idefics,
    prepared: Result<Prepared<'_>, Error>,
    args: &GenerationArgs,
    cancel: &CancelToken,
) -> Result<(), Failure> {
    let prepared = prepared.map_err(Failure::of_sample)?;
    let options = args.options();
    let lease = global.lease();
    let controls = args.controls(global, lease.as_ref(), cancel);
    let mut stdout = io::stdout().lock();
    let prefix = image.map_or_else(String::new, |image| format!("{image}: "));
    if !options.over(model.generation_config()).is_streamable() {
        let answers = prepared.generate(&options, controls).map_err(Failure::of_sample)?;
        for answer in &answers {
            match global.json {
                true => print_json(&mut stdout, answer, image)?,
                false => writeln!(stdout, "{prefix}{}", answer.text.trim_start())?,
            }
            report(global, answer);
        }
        return answers.iter().try_for_each(interrupted);
    }
    let mut chunks = Chunks::new(prefix);
    let answer = prepared.generate_streaming(&options, controls, |chunk| {
        if !global.json && !chunks.write(&mut stdout, chunk) {
            cancel.cancel(); // nobody reads any more
        }
    });
    let answer = answer.map_err(Failure::of_sample)?;
    let prefix = chunks.finish()?;
    match global.json {
        true => print_json(&mut stdout, &answer, image)?,
        false => writeln!(stdout, "{prefix}")?, // an empty answer has its line too
    }
    report(global, &answer);
    interrupted(&answer)
}

/// An answer that is printed while it is written, without the space between the prompt and it, which belongs to neither.
pub(crate) struct Chunks {
    /// Goes out with the first text: a sample that is refused prints nothing.
    prefix: Option<String>,
    written: io::Result<()>,
}

impl Chunks {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix: Some(prefix), written: Ok(()) }
    }

    /// Prints more of the answer; false once that has failed.
    pub(crate) fn write(&mut self, stdout: &mut impl Write, chunk: &str) -> bool {
        let chunk = if self.prefix.is_some() { chunk.trim_start() } else { chunk };
        if !chunk.is_empty() && self.written.is_ok() {
            let text = self.prefix.take().unwrap_or_default() + chunk;
            self.written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
        self.written.is_ok()
    }

    /// What is left to print before the line ends: the prefix, if the answer was empty.
    pub(crate) fn finish(self) -> io::Result<String> {
        self.written.map(|()| self.prefix.unwrap_or_default())
    }
}

/// Prints the answers of a batch of `n_samples`, each under its row's number, or as JSON lines. A row that failed has a
/// line of its own, on standard error, or in JSON an object with the error.
pub(crate) fn print_batch(
    global: &Global,
    answers: Vec<Result<Answer, Error>>,
    n_samples: usize,
) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let (n_answers, mut n_failed) = (answers.len(), 0);
    let mut answered = Vec::with_capacity(n_answers);
    for (index, answer) in answers.into_iter().enumerate() {
        let row = index * n_samples / n_answers;
        match answer {
            Ok(answer) => {
                match global.json {
                    true => print_json(&mut stdout, &answer, None)?,
                    false => writeln!(stdout, "[{row}] {}", answer.text.trim_start())?,
                }
                report(global, &answer);
                answered.push(answer);
            }
            Err(error) => {
                let failure = Failure::from(error);
                n_failed += 1;
                failure.warn();
                if global.json {
                    writeln!(stdout, "{}", json!({"row": row, "error": failure.message()}))?;
                }
            }
        }
    }
    answered.iter().try_for_each(interrupted)?;
    if n_failed > 0 { Err(Failure::some_failed(n_failed, n_answers)) } else { Ok(()) }
}

/// The record of an image that was refused, so that every image has one.
pub(crate) fn print_refused(image: &str, failure: &Failure) -> Result<(), Failure> {
    Ok(writeln!(io::stdout().lock(), "{}", json!({"image": image, "error": failure.message()}))?)
}

fn print_json(stdout: &mut impl Write, answer: &Answer, image: Option<&str>) -> Result<(), Failure> {
    let mut line = serde_json::to_value(answer).map_err(io::Error::from)?;
    if let Some(image) = image {
        line["image"] = image.into();
    }
    Ok(writeln!(stdout, "{line}")?)
}

fn report(global: &Global, answer: &Answer) {
    warn_of(answer);
    if global.verbose {
        let Answer { usage, timings, finish_reason, .. } = answer;
        let Usage { prompt_tokens, image_tokens, completion_tokens, .. } = usage;
        let Timings { preprocess_ms, vision_ms, connector_ms, prefill_ms, decode_ms, .. } = timings;
        say!(
            "{prompt_tokens} prompt tokens ({image_tokens} of images), {completion_tokens} generated, ended by \
             {finish_reason:?}; ms: preprocessing {preprocess_ms:.1}, vision {vision_ms:.1}, connector \
             {connector_ms:.1}, prefill {prefill_ms:.1}, decoding {decode_ms:.1}"
        );
        report_refusal(answer);
    }
}

/// Says what is odd about an answer; a warning is given once, however many answers it is about.
pub(crate) fn warn_of(answer: &Answer) {
    static SAID: Once = Once::new();
    for warning in &answer.warnings {
        SAID.call_once(|| say!("warning: {warning}"));
    }
}

/// Says why no decode step was replayed.
pub(crate) fn report_refusal(answer: &Answer) {
    if let Some(reason) = &answer.replay_refusal {
        say!("no step was replayed: {reason}");
    }
}

fn interrupted(answer: &Answer) -> Result<(), Failure> {
    match answer.finish_reason {
        FinishReason::Cancelled => Err(Failure::interrupted()),
        _ => Ok(()),
    }
}

/// Bytes in the largest unit that leaves a number above 1.
pub(crate) fn size(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}
