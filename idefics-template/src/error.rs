//! What can go wrong, and on which line of the template.

/// The class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The template is not valid Jinja2.
    Syntax,
    /// An undefined value was used where Jinja2 raises `UndefinedError`.
    Undefined,
    /// An operation got a value of a type it does not take (`TypeError` in Python).
    Type,
    /// An operation got a value that it cannot use (`ValueError`, `KeyError`, `OverflowError`, … in Python).
    Value,
    /// The reference's sandbox forbids this (`SecurityError`).
    Security,
    /// The template itself called `raise_exception`.
    Raised,
    /// The template exceeded one of its [`Limits`](crate::Limits).
    Limit,
    /// The reference renders this, and this crate does not.
    Unsupported,
}

/// A template that could not be parsed or rendered: what failed, and the line of the template, counted from 1.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", self.0.message, self.place())]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    message: String,
    line: u32,
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), line: 0 }))
    }

    pub(crate) fn syntax(message: impl Into<String>, line: u32) -> Self {
        Self::new(ErrorKind::Syntax, message).at(line)
    }

    pub(crate) fn of_type(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Type, message)
    }

    pub(crate) fn value(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Value, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    /// Adds the line, unless an inner expression did.
    pub(crate) fn at(mut self, line: u32) -> Self {
        if self.0.line == 0 {
            self.0.line = line;
        }
        self
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What failed, without the line.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The line of the template, counted from 1.
    pub fn line(&self) -> Option<u32> {
        (self.0.line > 0).then_some(self.0.line)
    }

    fn place(&self) -> String {
        self.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default()
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}: {self}", self.0.kind)
    }
}
