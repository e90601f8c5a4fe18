//! Parse and render errors.

/// The category of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The template is not valid Jinja2.
    Syntax,
    /// An undefined value was used where Jinja2 raises `UndefinedError`.
    Undefined,
    /// An operation got a value of the wrong type (`TypeError` in Python).
    Type,
    /// An operation got an invalid value (`ValueError`, `KeyError`, `OverflowError`, … in Python).
    Value,
    /// The sandbox of the reference forbids the operation (`SecurityError`).
    Security,
    /// The template called `raise_exception`.
    Raised,
    /// The template exceeded one of its [`Limits`](crate::Limits).
    Limit,
    /// The template uses a feature that the reference supports but this crate does not.
    Unsupported,
}

/// An error while parsing or rendering a template, with a message and the line of the template.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", self.0.message, self.location())]
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

    pub(crate) fn type_error(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Type, message)
    }

    pub(crate) fn value(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Value, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }

    /// Sets the line, unless an inner expression has already set it.
    pub(crate) fn at(mut self, line: u32) -> Self {
        if self.0.line == 0 {
            self.0.line = line;
        }
        self
    }

    /// The category of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message, without the line. For [`ErrorKind::Limit`] it is the limit that was exceeded, for example
    /// `1000000 steps`.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The line of the template, counted from 1; `None` if it is not known.
    pub fn line(&self) -> Option<u32> {
        (self.0.line > 0).then_some(self.0.line)
    }

    fn location(&self) -> String {
        self.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default()
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}: {self}", self.0.kind)
    }
}
