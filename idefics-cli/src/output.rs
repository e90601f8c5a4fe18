//! Prints answers to standard output.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Once;

use idefics_generate::{Answer, CancelToken, CompiledGrammar, Error, FinishReason, Idefics, Prepared, Timings, Usage};
use serde_json::json;

use crate::args::{GenerationArgs, Global};
use crate::failure::Failure;

/// Generates and prints the answer to one sample: streamed text, or one JSON object per answer. If an image name is
/// given as `image`, it is printed before the text, or added to the JSON object.
pub(crate) fn answer_one(
    global: &Global,
    image: Option<&str>,
    model: &Idefics,
    prepared: Result<Prepared<'_>, Error>,
    args: &GenerationArgs,
    grammar: Option<&CompiledGrammar>,
    cancel: &CancelToken,
) -> Result<(), Failure> {
    let prepared = prepared.map_err(Failure::sample)?;
    let options = args.options();
    let controls = args.controls(global, grammar, cancel);
    let mut stdout = io::stdout().lock();
    let prefix = image.map_or_else(String::new, |image| format!("{image}: "));
    if !options.over(model.generation_config()).is_streamable() {
        let answers = prepared.generate(&options, controls).map_err(Failure::sample)?;
        for answer in &answers {
            match global.json {
                true => print_json(&mut stdout, answer, image)?,
                false => writeln!(stdout, "{prefix}{}", answer.text.trim_start())?,
            }
            report(global, answer);
            warn_if_cut(grammar.is_some(), answer);
        }
        return answers.iter().try_for_each(check_cancelled);
    }
    let mut chunks = Chunks::new(prefix);
    let answer = prepared.generate_streaming(&options, controls, |chunk| {
        if !global.json && !chunks.write(&mut stdout, chunk) {
            cancel.cancel(); // standard output is closed
        }
    });
    let answer = answer.map_err(Failure::sample)?;
    let prefix = chunks.finish()?;
    match global.json {
        true => print_json(&mut stdout, &answer, image)?,
        false => writeln!(stdout, "{prefix}")?, // also for an empty answer
    }
    report(global, &answer);
    warn_if_cut(grammar.is_some(), &answer);
    check_cancelled(&answer)
}

/// Prints an answer while it is generated. White space between prompt and answer is removed.
pub(crate) struct Chunks {
    /// Text that is printed together with the first text of the answer. A rejected sample thus prints nothing.
    prefix: Option<String>,
    written: io::Result<()>,
}

impl Chunks {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix: Some(prefix), written: Ok(()) }
    }

    /// Prints the next part of the answer. Returns false once printing has failed.
    pub(crate) fn write(&mut self, stdout: &mut impl Write, chunk: &str) -> bool {
        let chunk = if self.prefix.is_some() { chunk.trim_start() } else { chunk };
        if !chunk.is_empty() && self.written.is_ok() {
            let text = self.prefix.take().unwrap_or_default() + chunk;
            self.written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
        self.written.is_ok()
    }

    /// Returns the text that must still be printed before the line ending: the prefix if the answer was empty,
    /// otherwise nothing.
    pub(crate) fn finish(self) -> io::Result<String> {
        self.written.map(|()| self.prefix.unwrap_or_default())
    }
}

/// Prints the answers to a batch of `n_samples` samples, as text with row numbers or as JSON lines. The error of a
/// failed row is printed to standard error. With `--json`, it is also printed as an object on standard output.
pub(crate) fn print_batch(
    global: &Global,
    answers: Vec<Result<Answer, Error>>,
    n_samples: usize,
    has_grammar: bool,
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
                warn_if_cut(has_grammar, &answer);
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
    answered.iter().try_for_each(check_cancelled)?;
    if n_failed > 0 { Err(Failure::some_failed(n_failed, n_answers)) } else { Ok(()) }
}

/// Prints a JSON object with the error of a failed image, so that every image has a line of output.
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
    warn_about(answer);
    if global.verbose {
        let Answer { usage, timings, finish_reason, .. } = answer;
        let Usage { prompt_tokens, image_tokens, completion_tokens, .. } = usage;
        let Timings { preprocess_ms, vision_ms, connector_ms, prefill_ms, decode_ms, .. } = timings;
        say!(
            "{prompt_tokens} prompt tokens ({image_tokens} for images), {completion_tokens} generated, finish reason \
             {finish_reason:?}; ms: preprocessing {preprocess_ms:.1}, vision {vision_ms:.1}, connector \
             {connector_ms:.1}, prefill {prefill_ms:.1}, decoding {decode_ms:.1}"
        );
        report_refusal(answer);
    }
}

/// Prints the first warning about an answer. Only one warning is printed per run.
pub(crate) fn warn_about(answer: &Answer) {
    static SAID: Once = Once::new();
    for warning in &answer.warnings {
        SAID.call_once(|| say!("warning: {warning}"));
    }
}

/// Prints a warning if an answer that follows a grammar was cut. Only one warning is printed per run.
pub(crate) fn warn_if_cut(has_grammar: bool, answer: &Answer) {
    static SAID: Once = Once::new();
    if has_grammar && matches!(answer.finish_reason, FinishReason::Length | FinishReason::Time) {
        let n_tokens = answer.token_ids.len();
        SAID.call_once(|| {
            say!("warning: the answer was cut after {n_tokens} tokens and is incomplete; raise --max-new-tokens")
        });
    }
}

/// Prints why no decode step was replayed, if there is a reason.
pub(crate) fn report_refusal(answer: &Answer) {
    if let Some(reason) = &answer.replay_refusal {
        say!("no decode step was replayed: {reason}");
    }
}

fn check_cancelled(answer: &Answer) -> Result<(), Failure> {
    match answer.finish_reason {
        FinishReason::Cancelled => Err(Failure::interrupted()),
        _ => Ok(()),
    }
}

/// Fails if the folder that shall contain the file or folder at `path` is missing.
pub(crate) fn check_parent(path: &Path) -> Result<(), Failure> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) if !parent.exists() => {
            let message = "there is no such folder; create it, or write to another folder";
            Err(Failure::file_system(format!("{}: {message}", parent.display())))
        }
        _ => Ok(()),
    }
}

/// Formats a number of bytes with a decimal unit, as in `1.50 kB`. The unit is the largest one up to GB in which the
/// value is at least 1.
pub(crate) fn format_bytes(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}
