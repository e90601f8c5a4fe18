//! `idefics batch`

mod answers;
mod groups;
mod journal;
mod journal_line;
mod output;
mod rows;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use idefics_generate::Grammar;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::args::{BatchArgs, Global};
use crate::failure::Failure;
use crate::input::Input;
use crate::{commands, model, signals};

use groups::{Group, Groups};
use output::{Done, Output, Target};
use rows::{Name, Rows, hex};

/// Number of bytes at each end of a model file that enter the digest of the model.
const DIGEST_BYTES: u64 = 64 << 10;

/// Number of groups whose rows are read from a file at a time, so that rows of similar length can be grouped.
const GROUPS_READ: usize = 32;

/// Answers every line of the input, except those that earlier runs answered.
pub(crate) fn run(global: &Global, args: &BatchArgs) -> Result<(), Failure> {
    let input = Input::new(&args.input);
    let mut rows = Rows::new(&input, input.open()?).peekable();
    if rows.peek().is_none() {
        return Err(Failure::input(format!("{}: contains no samples", input.name())));
    }
    let target = Target::open(&args.output)?;
    if target.file().is_some_and(|output| input.is_same_file(output)) {
        let output = args.output.display();
        return Err(Failure::usage(format!("--output {output} is the input file; give another path")));
    }
    let grammar = args.grammar.grammar(&args.generation.options())?;
    let folder = model::folder(global)?;
    let run = run_digest(global, args, grammar.as_ref(), folder.path())?;
    args.generation.options().validate_with_folder(folder.path())?; // rejects options before any file is created

    let is_file = input.is_file();
    // If the input or the output is a pipe, each group runs as soon as it has been read.
    let n_groups = if is_file && target.file().is_some() { GROUPS_READ } else { 1 };
    let size = args.batch_size.get();
    let (output, done) = Output::open(target, &run, args.restart)?;
    let mut groups = Groups::new(rows, &done, size, size.saturating_mul(n_groups));
    let mut batch = Batch {
        output,
        done: &done,
        n_missing: done.len(),
        bar: progress_bar(),
        is_file,
        has_grammar: grammar.is_some(),
    };
    // Groups that earlier runs answered are skipped. If all are answered, no model is loaded.
    let first = loop {
        match groups.next() {
            Some(group) if group.is_done() => batch.finish(group, &[])?,
            group => break group,
        }
    };
    if let Some(first) = first {
        let model = model::load_from(global, folder)?;
        let grammar = commands::compile(&model, grammar.as_ref())?;
        commands::warn(global, &model, &args.generation.options());
        let cancel = signals::cancel();
        let groups = std::iter::once(first).chain(groups);
        let controls = || args.generation.controls(global, grammar.as_ref(), &cancel);
        let settings = || (args.generation.options(), controls());
        model.answer_batches(groups, &args.process(global), size, settings, &mut batch)?;
    }
    batch.bar.finish_and_clear();
    let summary = batch.output.finish()?;
    if batch.n_missing > 0 {
        say!("warning: {} answered rows are no longer in {}; their answers are dropped", batch.n_missing, input.name());
    }
    if summary.was_complete {
        say!("{}: already complete", args.output.display());
    }
    match summary.n_failed {
        0 => Ok(()),
        n_failed => Err(Failure::some_failed(n_failed, summary.n_rows)),
    }
}

/// A running batch.
struct Batch<'a> {
    output: Output,
    /// Digests of the rows that earlier runs answered, by name.
    done: &'a HashMap<Name, String>,
    /// Number of rows in `done` that have not been found in the input so far.
    n_missing: usize,
    bar: ProgressBar,
    /// Whether the input is a file, so that reading it ends.
    is_file: bool,
    /// Whether the answers follow a grammar.
    has_grammar: bool,
}

impl Batch<'_> {
    /// Completes a group: takes over the rows that earlier runs answered, and saves those that are `invalid`.
    fn finish(&mut self, group: Group, invalid: &[Done]) -> Result<(), Failure> {
        for row in &group.rows {
            self.n_missing -= usize::from(self.done.contains_key(&row.row.name));
            if row.is_done {
                self.output.reuse(row.row.index, &row.row.name);
            }
        }
        if !invalid.is_empty() {
            self.output.save(invalid)?;
        }
        self.bar.inc(group.rows.len() as u64);
        group.failure.map_or(Ok(()), Err)
    }

    /// Ends the program after a failure if the input is a pipe, because the thread that reads the pipe may be blocked
    /// forever.
    fn exit_if_reading_a_pipe<T>(&self, kept: Result<T, Failure>) -> Result<T, Failure> {
        kept.inspect_err(|failure| {
            if !self.is_file {
                failure.exit();
            }
        })
    }
}

/// Computes the digest of everything that all rows depend on: the model, the options and the program's version.
fn run_digest(global: &Global, args: &BatchArgs, grammar: Option<&Grammar>, folder: &Path) -> Result<String, Failure> {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    let Global { device, dtype, quantize, double_quant, quantize_vision, quantize_head, activations, seed, .. } =
        global;
    digest.update(format!("{device:?} {dtype:?} {quantize} {double_quant} {quantize_vision} {quantize_head}"));
    digest.update(format!("{activations:?} "));
    digest.update(format!("{:?} {:?} {seed} {}", global.device_map, global.max_memory, args.batch_size));
    digest.update(format!("{:?}", args.generation));
    if let Some(grammar) = grammar {
        digest.update(format!("{grammar:?}"));
    }
    let failed = |error: io::Error| Failure::io(folder, &error);
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
        file.by_ref().take(DIGEST_BYTES).read_to_end(&mut ends).map_err(failed)?;
        file.seek(SeekFrom::Start(len.saturating_sub(DIGEST_BYTES))).map_err(failed)?;
        file.take(DIGEST_BYTES).read_to_end(&mut ends).map_err(failed)?;
        digest.update(&ends);
    }
    Ok(hex(digest))
}

/// Returns a progress bar with the number and rate of rows, shown on standard error if that is a terminal.
fn progress_bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {pos} rows, {per_sec}, {elapsed}").expect("the template is valid");
    ProgressBar::no_length().with_style(style)
}
