//! Errors as one line and an exit code.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::ExitCode;

use idefics_generate::processor::{ProcessorError, io_words};
use idefics_generate::{Error, GenerationError};

use crate::{scratch, signals};

const SOME_FAILED: u8 = 1;
const USAGE: u8 = 2;
const INPUT: u8 = 3;
const FILE_SYSTEM: u8 = 5;
const LIMIT: u8 = 6;
const NETWORK: u8 = 7;
const NUMERIC: u8 = 8;
const BUG: u8 = 70;

/// Why the program stops early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Nothing to say if empty.
    message: String,
    /// Whether nothing more can come out: standard output cannot be written.
    is_last: bool,
    /// Whether a sample is at fault, whatever the code.
    is_of_sample: bool,
}

impl Failure {
    fn new(code: u8, message: String) -> Self {
        Self { code, message, is_last: false, is_of_sample: false }
    }

    /// A command line that asks for something impossible.
    pub(crate) fn usage(message: String) -> Self {
        Self::new(USAGE, message)
    }

    /// A file that is not what it should be.
    pub(crate) fn input(message: String) -> Self {
        Self::new(INPUT, message)
    }

    /// A file or a terminal that cannot be used.
    pub(crate) fn file_system(message: String) -> Self {
        Self::new(FILE_SYSTEM, message)
    }

    /// What the system answered about a file.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        Self::of_io(&path.display().to_string(), error)
    }

    /// What the system answered about a file, a pipe or a terminal. Nothing is wrong, and nothing said, if the reader of a
    /// pipe has had enough.
    pub(crate) fn of_io(name: &str, error: &io::Error) -> Self {
        let advice = match error.kind() {
            ErrorKind::BrokenPipe => return Self::new(0, String::new()),
            ErrorKind::NotFound => "; check the path",
            ErrorKind::PermissionDenied => "; check who owns it and its permissions",
            ErrorKind::StorageFull => "; make room and try again",
            _ => "",
        };
        Self::file_system(format!("{name}: {}{advice}", io_words(error)))
    }

    /// More than there is room for.
    pub(crate) fn limit(message: String) -> Self {
        Self::new(LIMIT, message)
    }

    /// A panic.
    pub(crate) fn bug(message: &str) -> Self {
        Self::new(BUG, format!("this is a bug of idefics, please report it: {message}"))
    }

    /// A signal.
    pub(crate) fn interrupted() -> Self {
        Self::new(signals::exit_code(), String::new())
    }

    /// What is wrong with a sample that was run alone, and that nobody numbered.
    pub(crate) fn of_sample(error: Error) -> Self {
        // A template refuses some messages, and some prompts are too long for `--max-length`.
        let is_of_sample = matches!(
            error,
            Error::Processor(
                ProcessorError::Render { .. }
                    | ProcessorError::TemplateLimit { .. }
                    | ProcessorError::TemplateLossy { .. }
            ) | Error::Generation(GenerationError::NoRoom { .. })
        );
        let mut failure = Self { is_of_sample, ..Self::from(error) };
        if let Some(rest) = ["row 0, ", "row 0: "].iter().find_map(|row| failure.message.strip_prefix(row)) {
            failure.message = rest.to_owned();
        }
        failure
    }

    /// `failed` of `all` inputs were refused; each was reported already.
    pub(crate) fn some_failed(failed: usize, all: usize) -> Self {
        Self::new(SOME_FAILED, format!("{failed} of {all} inputs failed"))
    }

    /// Whether another input may fare better: not when standard output is gone or the device failed.
    pub(crate) fn is_of_one_input(&self) -> bool {
        !self.is_last && (self.is_of_sample || matches!(self.code, INPUT | FILE_SYSTEM | LIMIT | NETWORK | NUMERIC))
    }

    /// Whether something impossible was asked for.
    pub(crate) fn is_usage(&self) -> bool {
        self.code == USAGE
    }

    /// Whether a signal ended it.
    pub(crate) fn is_interruption(&self) -> bool {
        self.code == signals::exit_code()
    }

    /// What is wrong, on one line, in words.
    pub(crate) fn message(&self) -> String {
        without_error_numbers(&self.message.replace('\n', " "))
    }

    /// Prints the line.
    pub(crate) fn warn(&self) {
        if !self.message.is_empty() {
            say!("error: {}", self.message());
        }
    }

    /// Prints the line and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        self.warn();
        ExitCode::from(self.code)
    }

    /// Prints the line and ends the program, whatever other threads wait for.
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

/// Standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { is_last: true, ..Self::of_io("standard output", &error) }
    }
}

/// The message without the numbers that Rust writes behind the system's words: `No such file or directory (os error 2)`.
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
    fn messages_have_words_and_no_error_numbers() {
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
    fn a_reader_that_went_away_is_no_error() {
        let failure = Failure::from(io::Error::from(ErrorKind::BrokenPipe));
        assert!(failure.code == 0 && failure.message().is_empty());
    }
}
