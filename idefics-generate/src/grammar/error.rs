//! Errors of grammars.

/// A grammar that is rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A JSON schema that is not JSON.
    #[error("the JSON schema is not valid JSON: {source}")]
    NotJson {
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A JSON schema that is neither an object nor a boolean.
    #[error("the JSON schema is {found}; expected an object, such as {{\"type\": \"object\"}}")]
    NotASchema {
        /// The kind of JSON value that was found.
        found: &'static str,
    },
    /// The JSON schema `false`.
    #[error("the JSON schema is false, which allows no value; expected an object")]
    AllowsNothing,
    /// A grammar with too much text.
    #[error("the {what} has {bytes} bytes; at most {limit} are allowed; shorten it")]
    TooLong {
        /// The kind of grammar.
        what: GrammarKind,
        /// The size of the grammar in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A JSON schema that is nested too deeply.
    #[error("the JSON schema is nested deeper than {limit} levels; move inner parts to `$defs`")]
    TooDeep {
        /// Maximum number of levels.
        limit: usize,
    },
    /// A key that sets options of the grammar library.
    #[error("the JSON schema has the key `x-guidance`, which is not allowed; remove it")]
    Guidance,
    /// A reference to another document.
    #[error(
        "`$ref` is {reference:?}; expected a reference within the schema, such as \"#/$defs/name\"; copy the referenced \
         part into the schema"
    )]
    RemoteReference {
        /// The reference.
        reference: String,
    },
    /// A value of `multipleOf` that is out of range.
    #[error(
        "`multipleOf` is {value}; expected a number above 0 and at most 10000, with at most 4 significant digits and 4 \
         decimals, such as 0.25"
    )]
    MultipleOf {
        /// The value in the schema.
        value: f64,
    },
    /// Several values of `multipleOf` that together would need a large automaton.
    #[error("the values of `multipleOf` have a common multiple above {limit}; use fewer or simpler values")]
    MultiplesTogether {
        /// The limit.
        limit: u64,
    },
    /// A regular expression that ends in the middle of an escape.
    #[error("the regular expression {pattern:?} ends with a single backslash; write `\\\\` for a backslash")]
    TrailingBackslash {
        /// The expression.
        pattern: String,
    },
    /// A regular expression with a group named `stop`, which has a special meaning in the grammar library.
    #[error("the regular expression {pattern:?} has a group named `stop`; give it another name")]
    StopGroup {
        /// The expression.
        pattern: String,
    },
    /// An empty regular expression.
    #[error("the regular expression is empty and matches only an empty answer; describe the answer, as in [0-9]+")]
    EmptyRegex,
    /// No choices, or an empty choice.
    #[error("there are no choices, or a choice is empty; give at least one choice with text")]
    NoChoices,
    /// A regular expression with a syntax error, alone or in a JSON schema.
    #[error("the {what} is not valid: {reason}")]
    Invalid {
        /// The kind of grammar.
        what: GrammarKind,
        /// The error of the parser of regular expressions.
        reason: String,
    },
    /// The grammar library rejected the grammar.
    #[error("the {what} is not supported: {reason}")]
    Rejected {
        /// The kind of grammar.
        what: GrammarKind,
        /// The library's message.
        reason: String,
    },
    /// The grammar allows no answer in the model's vocabulary.
    #[error("the {what} allows no answer: no token of the vocabulary can begin one")]
    NoAnswer {
        /// The kind of grammar.
        what: GrammarKind,
    },
    /// The grammar needs too many parser items or lexer states.
    #[error("the {what} is too complex: {reason}; simplify it, for example with fewer optional properties")]
    TooComplex {
        /// The kind of grammar.
        what: GrammarKind,
        /// Which limit was reached.
        reason: String,
    },
    /// Compiling the grammar took too long.
    #[error("compiling the {what} took longer than {seconds} seconds; simplify it")]
    Time {
        /// The kind of grammar.
        what: GrammarKind,
        /// The time limit in seconds.
        seconds: u64,
    },
    /// A vocabulary that is too large for the grammar library.
    #[error("the vocabulary has {found} {what}; grammars support at most {limit}")]
    Vocabulary {
        /// What exceeds the limit: `tokens` or `bytes`.
        what: &'static str,
        /// Number of these tokens or bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The grammar library cannot use the vocabulary.
    #[error("grammars cannot use the tokens of this model: {reason}")]
    Tokens {
        /// The library's message.
        reason: String,
    },
    /// A grammar that was compiled for another vocabulary.
    #[error("the grammar was compiled for {compiled} tokens, but the model has {expected}; compile it for this model")]
    OtherVocabulary {
        /// Number of tokens that the grammar was compiled for.
        compiled: usize,
        /// Number of tokens of the model.
        expected: usize,
    },
    /// The thread that compiles grammars could not be started.
    #[error("cannot start a thread to compile the grammar: {source}")]
    Thread {
        /// Error of the operating system.
        source: std::io::Error,
    },
}

/// The kind of a grammar, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrammarKind {
    /// A JSON schema.
    JsonSchema,
    /// A regular expression.
    Regex,
    /// A list of choices.
    Choices,
}

impl std::fmt::Display for GrammarKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::JsonSchema => "JSON schema",
            Self::Regex => "regular expression",
            Self::Choices => "list of choices",
        })
    }
}

impl GrammarError {
    /// Returns whether a limit of this machine or of this library was reached, rather than the grammar being invalid.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(
            self,
            Self::TooLong { .. }
                | Self::TooDeep { .. }
                | Self::TooComplex { .. }
                | Self::Time { .. }
                | Self::Vocabulary { .. }
                | Self::Thread { .. }
        )
    }
}
