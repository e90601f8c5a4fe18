//! The command line program `idefics`.
//!
//! Results are written to standard output, everything else to standard error. This crate parses arguments, reads
//! input and prints output; `idefics-generate` does the work.

/// Prints a line to standard error. Unlike `eprintln!`, it does not panic if standard error is closed.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod args;
mod commands;
mod failure;
mod input;
mod machine;
mod media;
mod model;
mod output;
mod placing;
mod scratch;
mod signals;
mod terminal;

use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::Parser;
use clap::error::ErrorKind;
use idefics_generate::DeviceLease;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    signals::install();
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => return print(&error),
            _ => return Failure::usage(first_lines(&error.to_string())).report(),
        },
    };
    // Panics of image decoders are caught elsewhere and become errors. Only a panic that reaches this function is
    // reported.
    static PANIC: Mutex<String> = Mutex::new(String::new());
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = format!("{} ({place})", info.payload_as_str().unwrap_or("no message"));
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }));
    #[allow(unsafe_code, reason = "the contract is about the program's threads")]
    // SAFETY: only this thread uses devices; it runs the command. All other threads only read files and decode images.
    let lease = (!cli.global.no_replay).then(|| unsafe { DeviceLease::for_this_thread() });
    cli.global.lease = lease;
    match panic::catch_unwind(|| run(&cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_) => Failure::bug(&PANIC.lock().unwrap_or_else(PoisonError::into_inner)).report(),
    }
}

/// Prints help or the version to standard output, or to standard error for usage errors.
fn print(help: &clap::Error) -> ExitCode {
    let code = if help.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    match help.print().and_then(|()| io::stdout().flush()) {
        Err(error) if !help.use_stderr() => Failure::from(error).report(),
        _ => code,
    }
}

/// Joins the lines of Clap's error message to one, without the usage text after it.
fn first_lines(message: &str) -> String {
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    lines.join("; ").replace(":; ", ": ").trim_start_matches("error: ").to_owned()
}

fn run(cli: &Cli) -> Result<(), Failure> {
    idefics_kernels::IsaLevel::cap().map_err(|error| Failure::usage(error.to_string()))?;
    for warning in cli.warnings() {
        say!("warning: {warning}");
    }
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .map_err(|error| Failure::usage(format!("--threads {threads}: {error}")))?;
    }
    match &cli.command {
        Command::Caption(args) => commands::caption::run(&cli.global, args),
        Command::Ask(args) => commands::ask::run(&cli.global, args),
        Command::Generate(args) => commands::generate::run(&cli.global, args),
        Command::Classify(args) => commands::classify::run(&cli.global, args),
        Command::Batch(args) => commands::batch::run(&cli.global, args),
        Command::Chat(args) => commands::chat::run(&cli.global, args),
        Command::Completions { shell } => commands::manual::completions(*shell),
        Command::Man => commands::manual::man(),
        Command::Demo(args) => commands::demo::run(&cli.global, args),
        Command::Bench(args) => commands::bench::run(&cli.global, args),
        Command::Quantize(args) => commands::quantize::run(&cli.global, args),
        Command::Inspect => commands::inspect::run(&cli.global),
        Command::WarmUp(args) => commands::warm_up::run(&cli.global, args),
        Command::Devices => commands::devices::run(&cli.global),
        Command::Models => commands::models::run(&cli.global),
    }
}
