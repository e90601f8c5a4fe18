//! `idefics`: images and text in, text out.
//!
//! Results go to standard output, everything else to standard error. This program only wires: the work is done by
//! `idefics-generate`.

#![allow(clippy::print_stdout, clippy::print_stderr)] // it is a program

mod args;
mod commands;
mod failure;
mod model;
mod output;

use std::panic;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
        eprintln!("error: this is a bug of idefics, please report it: {message} ({place})");
    }));
    match panic::catch_unwind(|| run(&cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_) => ExitCode::from(failure::BUG),
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .build_global()
            .map_err(|error| Failure::usage(format!("--threads {threads}: {error}")))?;
    }
    match &cli.command {
        Command::Caption(args) => commands::caption::run(&cli.global, args),
        Command::Ask(args) => commands::ask::run(&cli.global, args),
        Command::Generate(args) => commands::generate::run(&cli.global, args),
        Command::Inspect => commands::inspect::run(&cli.global),
    }
}
