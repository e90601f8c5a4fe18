//! The built-in model: `train-demo` trains it, `eval-demo` and `compare-formats` measure it.

mod card;
mod data;
pub(crate) mod eval;
mod export;
mod folder;
pub(crate) mod formats;
mod init;
mod tokenizer;
mod tower;
pub(crate) mod train;

use std::process::ExitCode;

/// Prints an error, if there is one, as one line. Returns the exit code that the program `idefics` would return.
fn exit(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {}", one_line(&error));
    let kind = error.chain().find_map(|cause| {
        let train = cause.downcast_ref::<idefics_train::TrainError>().map(|error| error.kind());
        train.or_else(|| cause.downcast_ref::<idefics_generate::Error>().map(idefics_generate::Error::kind))
    });
    let io = error.chain().any(|cause| cause.is::<std::io::Error>());
    ExitCode::from(match kind {
        Some(kind) => kind.exit_code(),
        None if io => idefics_generate::ErrorKind::FileSystem.exit_code(),
        None => 2,
    })
}

/// Joins the error and its causes to one line. Leaves out causes that the line already contains.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
