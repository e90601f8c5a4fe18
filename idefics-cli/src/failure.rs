//! Errors as one line and an exit code.

use std::process::ExitCode;

use idefics_generate::Error;

const SOME_FAILED: u8 = 1;
const USAGE: u8 = 2;
const INPUT: u8 = 3;
const FILE_SYSTEM: u8 = 5;
const LIMIT: u8 = 6;
const NETWORK: u8 = 7;
const NUMERIC: u8 = 8;
const BUG: u8 = 70;
const INTERRUPTED: u8 = 130;

/// Why the program stops early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Nothing to say if empty.
    message: String,
}

impl Failure {
    /// A command line that asks for something impossible.
    pub(crate) fn usage(message: String) -> Self {
        Self { code: USAGE, message }
    }

    /// A file that is not what it should be.
    pub(crate) fn input(message: String) -> Self {
        Self { code: INPUT, message }
    }

    /// A file that cannot be read.
    pub(crate) fn file_system(message: String) -> Self {
        Self { code: FILE_SYSTEM, message }
    }

    /// More than there is room for.
    pub(crate) fn limit(message: String) -> Self {
        Self { code: LIMIT, message }
    }

    /// A panic.
    pub(crate) fn bug(message: &str) -> Self {
        Self { code: BUG, message: format!("this is a bug of idefics, please report it: {message}") }
    }

    /// Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self { code: INTERRUPTED, message: String::new() }
    }

    /// What is wrong with a sample that was run alone, and that nobody numbered.
    pub(crate) fn of_sample(error: Error) -> Self {
        let mut failure = Self::from(error);
        if let Some(rest) = ["row 0, ", "row 0: "].iter().find_map(|row| failure.message.strip_prefix(row)) {
            failure.message = rest.to_owned();
        }
        failure
    }

    /// `failed` of `all` inputs were refused; each was reported already.
    pub(crate) fn some_failed(failed: usize, all: usize) -> Self {
        Self { code: SOME_FAILED, message: format!("{failed} of {all} inputs failed") }
    }

    /// Whether another input may fare better: not when standard output is gone or the device failed.
    pub(crate) fn is_of_one_input(&self) -> bool {
        matches!(self.code, INPUT | FILE_SYSTEM | LIMIT | NETWORK | NUMERIC)
    }

    /// Whether something impossible was asked for.
    pub(crate) fn is_usage(&self) -> bool {
        self.code == USAGE
    }

    /// What is wrong, on one line.
    pub(crate) fn message(&self) -> String {
        self.message.replace('\n', " ")
    }

    /// Prints the line.
    pub(crate) fn warn(&self) {
        if !self.message.is_empty() {
            eprintln!("error: {}", self.message());
        }
    }

    /// Prints the line and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        self.warn();
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled => Self::interrupted(),
            error => Self { code: error.kind().exit_code(), message: error.to_string() },
        }
    }
}

/// Standard output is gone when its reader has had enough: nothing more to do, and nothing to say.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self { code: 0, message: String::new() },
            _ => Self::file_system(format!("standard output: {error}")),
        }
    }
}
