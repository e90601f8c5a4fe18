//! The project's own chores: `cargo xtask verify` compares the models with reference outputs,
//! `gpu` runs all that on a card and measures large shapes, `train-demo`, `eval-demo` and `compare-formats` make and
//! measure the model that the program carries.

#![allow(clippy::print_stdout, clippy::print_stderr)] // it is a program
#![allow(clippy::disallowed_methods)] // it looks at what models compute

mod demo;
mod gpu;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the idefics workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares every stage of a model with what the reference computed.
    Verify(verify::Args),
    /// Runs everything that is to be seen on a card, and writes a report.
    Gpu(gpu::Args),
    /// Measures what eight-bit activations change about the logits of every case.
    CompareActivations(verify::activations::Args),
    /// Trains the small model that the program carries.
    TrainDemo(demo::train::Args),
    /// Measures a small model on scenes that it never saw.
    EvalDemo(demo::eval::Args),
    /// Measures what each weight format changes about a small model's answers.
    CompareFormats(demo::formats::Args),
}

fn main() -> ExitCode {
    end_with_the_reader();
    if let Err(error) = idefics_kernels::IsaLevel::cap() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    match Cli::parse().command {
        Command::Verify(args) => verify::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::CompareActivations(args) => verify::activations::run(&args),
        Command::TrainDemo(args) => demo::train::run(&args),
        Command::EvalDemo(args) => demo::eval::run(&args),
        Command::CompareFormats(args) => demo::formats::run(&args),
    }
}

/// Ends the program quietly when the reader of its output goes away, with the code that a shell gives for SIGPIPE. Rust
/// ignores that signal, and `println!` would panic.
fn end_with_the_reader() {
    #[cfg(unix)]
    {
        use std::sync::Arc;
        use std::sync::atomic::AtomicBool;

        use signal_hook::consts::SIGPIPE;
        use signal_hook::flag::register_conditional_shutdown;

        // Without the handler there is a panic instead.
        let _ = register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, Arc::new(AtomicBool::new(true)));
    }
}
