//! Development tasks. `cargo xtask verify` compares the models with reference outputs; `compare-activations` measures
//! the effect of int8 activations. `gpu` verifies and measures everything on a GPU. `train-demo`, `eval-demo` and
//! `compare-formats` train and measure the built-in model.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command line program
#![allow(clippy::disallowed_methods)] // reads tensors back to the host to compare them

mod demo;
mod gpu;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of the idefics workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare every stage of a model with the results of the reference.
    Verify(verify::Args),
    /// Test and measure a GPU, and write a report.
    Gpu(gpu::Args),
    /// Measure the effect of int8 activations on the logits of every case.
    CompareActivations(verify::activations::Args),
    /// Train the built-in model.
    TrainDemo(demo::train::Args),
    /// Measure the accuracy of the built-in model on unseen scenes.
    EvalDemo(demo::eval::Args),
    /// Measure the effect of each weight format on the answers of the built-in model.
    CompareFormats(demo::formats::Args),
}

fn main() -> ExitCode {
    exit_on_broken_pipe();
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

/// Makes the program exit quietly when the reader of its output closes the pipe, with the exit code that a shell
/// reports for SIGPIPE. Rust ignores this signal by default, so `println!` would panic.
fn exit_on_broken_pipe() {
    #[cfg(unix)]
    {
        use std::sync::Arc;
        use std::sync::atomic::AtomicBool;

        use signal_hook::consts::SIGPIPE;
        use signal_hook::flag::register_conditional_shutdown;

        // If the handler cannot be registered, `println!` panics instead.
        let _ = register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, Arc::new(AtomicBool::new(true)));
    }
}
