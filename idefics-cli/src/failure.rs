//! Errors of the program. Each is reported as one line on standard error and an exit code.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

use idefics_generate::processor::{ProcessorError, describe_io_error};
use idefics_generate::{Error, GenerationError, GrammarError};

use crate::{scratch, signals};

const SOME_FAILED: u8 = 1;
const USAGE: u8 = 2;
const INPUT: u8 = 3;
const FILE_SYSTEM: u8 = 5;
const LIMIT: u8 = 6;
const NETWORK: u8 = 7;
const NUMERIC: u8 = 8;
const BUG: u8 = 70;

/// The reason why the program stops early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// The message to print; nothing is printed if it is empty.
    message: String,
    /// Whether standard output cannot be written, so that further inputs would be run in vain.
    is_output_closed: bool,
    /// Whether the error concerns only one sample, whatever its exit code.
    is_sample_error: bool,
}

impl Failure {
    fn new(code: u8, message: String) -> Self {
        Self { code, message, is_output_closed: false, is_sample_error: false }
    }

    /// Creates a failure for invalid values or combinations of command line arguments.
    pub(crate) fn usage(message: String) -> Self {
        Self::new(USAGE, message)
    }

    /// Creates a failure for a grammar that is rejected. `name` is its file or option.
    pub(crate) fn grammar(name: &str, error: GrammarError) -> Self {
        let message = format!("{name}: {error}");
        Self { message, ..Self::from(Error::from(error)) }
    }

    /// Creates a failure for invalid content of an input.
    pub(crate) fn input(message: String) -> Self {
        Self::new(INPUT, message)
    }

    /// Creates a failure for a file or terminal that cannot be read or written.
    pub(crate) fn file_system(message: String) -> Self {
        Self::new(FILE_SYSTEM, message)
    }

    /// Creates a failure for an I/O error of the file at `path`.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        Self::io_named(&path.display().to_string(), error)
    }

    /// Creates a failure for an I/O error of a file, pipe or terminal called `name`. A broken pipe is not an error: the
    /// exit code is 0 and the message is empty.
    pub(crate) fn io_named(name: &str, error: &io::Error) -> Self {
        let advice = match error.kind() {
            ErrorKind::BrokenPipe => return Self::new(0, String::new()),
            ErrorKind::NotFound => "; check the path",
            ErrorKind::PermissionDenied => "; check its owner and permissions",
            ErrorKind::StorageFull => "; free some space and try again",
            _ => "",
        };
        Self::file_system(format!("{name}: {}{advice}", describe_io_error(error)))
    }

    /// Creates a failure for an exceeded limit on memory or size.
    pub(crate) fn limit(message: String) -> Self {
        Self::new(LIMIT, message)
    }

    /// Creates a failure for a panic with the given message.
    pub(crate) fn bug(message: &str) -> Self {
        Self::new(BUG, format!("this is a bug in idefics; please report it: {message}"))
    }

    /// Creates a failure for a program that a signal ends. Nothing is printed.
    pub(crate) fn interrupted() -> Self {
        Self::new(signals::exit_code(), String::new())
    }

    /// Creates a failure for an error of a sample that was run alone. The row number is removed from the message.
    pub(crate) fn sample(error: Error) -> Self {
        // These errors depend on the sample: a template can reject a message, a prompt can be too long for
        // `--max-length`, and the tokens that are still allowed depend on the answer.
        let is_sample_error = matches!(
            error,
            Error::Processor(
                ProcessorError::Render { .. }
                    | ProcessorError::TemplateLimit { .. }
                    | ProcessorError::TemplateLossy { .. }
            ) | Error::Generation(GenerationError::NoRoom { .. })
                | Error::NoAllowedToken { .. }
        );
        let mut failure = Self { is_sample_error, ..Self::from(error) };
        if let Some(rest) = ["row 0, ", "row 0: "].iter().find_map(|row| failure.message.strip_prefix(row)) {
            failure.message = rest.to_owned();
        }
        failure
    }

    /// Creates the final failure after `failed` of `all` inputs failed. Their errors have been reported already.
    pub(crate) fn some_failed(failed: usize, all: usize) -> Self {
        Self::new(SOME_FAILED, format!("{failed} of {all} inputs failed"))
    }

    /// Creates the final failure of a chat, after `failed` of `all` questions failed.
    pub(crate) fn questions_failed(failed: usize, all: usize) -> Self {
        Self::new(SOME_FAILED, format!("{failed} of {all} questions failed"))
    }

    /// Returns whether other inputs can still succeed. They cannot, for example, if standard output is closed or the
    /// device failed.
    pub(crate) fn affects_one_input(&self) -> bool {
        !self.is_output_closed
            && (self.is_sample_error || matches!(self.code, INPUT | FILE_SYSTEM | LIMIT | NETWORK | NUMERIC))
    }

    /// Returns whether this failure is a usage error.
    pub(crate) fn is_usage(&self) -> bool {
        self.code == USAGE
    }

    /// Returns the message on one line, without the error numbers of the operating system and the program's temporary
    /// folder.
    pub(crate) fn message(&self) -> String {
        scratch::with_names(&without_error_numbers(&self.message.replace('\n', " ")))
    }

    /// Prints the message to standard error.
    pub(crate) fn warn(&self) {
        if !self.message.is_empty() {
            say!("error: {}", self.message());
        }
    }

    /// Prints the message and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        self.warn();
        ExitCode::from(self.code)
    }

    /// Prints the message and exits without waiting for other threads.
    pub(crate) fn exit(&self) -> ! {
        self.warn();
        scratch::remove();
        std::process::exit(self.code.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            _ if matches!(error, Error::Cancelled) => Self::interrupted(),
            idefics_generate::ErrorKind::Cancelled => Self::new(signals::exit_code(), error.to_string()),
            kind => Self::new(kind.exit_code(), error.to_string()),
        }
    }
}

/// Treats an I/O error that is converted with `?` as an error of standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { is_output_closed: true, ..Self::io_named("standard output", &error) }
    }
}

/// Removes the error numbers that Rust appends to system messages, as in `No such file or directory (os error 2)`.
fn without_error_numbers(message: &str) -> String {
    let mut parts = message.split(" (os error ");
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => {
                words.push_str(rest)
            }
            _ => words.extend([" (os error ", part]),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_contain_no_os_error_numbers() {
        let missing = io::Error::from_raw_os_error(2);
        let message = Failure::io(Path::new("a.png"), &missing).message();
        assert_eq!(message, "a.png: there is no such file or folder; check the path");
        let twice = Failure::input(format!("a: {missing}, b:\n{missing}")).message();
        assert_eq!(twice, "a: No such file or directory, b: No such file or directory");
        for other in ["an (os error of mine)", "(os error 2)", " (os error ", " (os error 2"] {
            assert_eq!(without_error_numbers(other), other);
        }
    }

    #[test]
    fn broken_pipe_is_not_an_error() {
        let failure = Failure::from(io::Error::from(ErrorKind::BrokenPipe));
        assert!(failure.code == 0 && failure.message().is_empty());
    }
}
