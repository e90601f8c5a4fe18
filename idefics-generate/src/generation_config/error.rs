//! Errors and warnings about generation options.

/// Generation options that are invalid.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// An option whose effect is not implemented.
    #[error("`{option}` is {value}; expected {neutral}, the only supported value")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The value with which the option has no effect.
        neutral: String,
    },
    /// The length limit leaves no room for a token.
    #[error(
        "`{option}` is {value}, which leaves no room for a new token after a prompt of {prompt_tokens} tokens; \
         increase it"
    )]
    NoRoom {
        /// The option.
        option: &'static str,
        /// Its value, in tokens.
        value: usize,
        /// Number of tokens in the longest prompt.
        prompt_tokens: usize,
    },
    /// Too many beams, answers or tokens for the memory limit of a sample.
    #[error(
        "`{option}` is {value}: with {max_new_tokens} new tokens each, a sample would need about {needed:.1} GiB of \
         memory; at most {limit:.0} GiB are allowed; request fewer or shorter answers"
    )]
    Memory {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// Maximum number of new tokens in an answer.
        max_new_tokens: usize,
        /// Memory that the sample would need, in GiB.
        needed: f64,
        /// Memory limit per sample, in GiB.
        limit: f64,
    },
    /// A number outside the accepted range.
    #[error("`{option}` is {value}; expected {expected}")]
    OutOfRange {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The accepted range.
        expected: &'static str,
    },
    /// Two options that contradict each other.
    #[error("`{option}` and `{other}` cannot be combined: {reason}")]
    Conflict {
        /// The option.
        option: &'static str,
        /// The other option.
        other: &'static str,
        /// Why they cannot be combined.
        reason: &'static str,
    },
    /// An empty list, or a list with an empty entry.
    #[error("`{option}` is empty or contains an empty sequence")]
    Empty {
        /// The option.
        option: &'static str,
    },
    /// A token id outside the model's vocabulary.
    #[error("`{option}` contains token id {id}, which is not less than the model's vocabulary size {vocab_size}")]
    TokenId {
        /// The option.
        option: &'static str,
        /// The id.
        id: u32,
        /// Vocabulary size of the model, which is the width of the logits.
        vocab_size: usize,
    },
    /// An option that needs a tokenizer.
    #[error("`{option}` needs a tokenizer, but none was given")]
    NoTokenizer {
        /// The option.
        option: &'static str,
    },
}

impl GenerationError {
    /// Returns the options that the error is about.
    pub(super) fn options(&self) -> impl Iterator<Item = &'static str> {
        let (option, other) = match self {
            Self::Conflict { option, other, .. } => (*option, Some(*other)),
            Self::Unsupported { option, .. }
            | Self::NoRoom { option, .. }
            | Self::Memory { option, .. }
            | Self::OutOfRange { option, .. }
            | Self::Empty { option }
            | Self::TokenId { option, .. }
            | Self::NoTokenizer { option } => (*option, None),
        };
        [option].into_iter().chain(other)
    }
}

/// A questionable option that does not prevent generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationWarning {
    /// A key that is not a generation option.
    #[error("`{key}` is not a generation option and is ignored")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// An option of the model folder whose effect is not implemented. It is ignored.
    #[error("`{option}` is {value}; it is not supported and is ignored")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// An option of the model folder with token ids outside the vocabulary. The affected entries are ignored.
    #[error("`{option}` has token ids that are not less than the vocabulary size {vocab_size}; they are ignored")]
    TokenIds {
        /// The option.
        option: &'static str,
        /// Vocabulary size of the model, which is the width of the logits.
        vocab_size: usize,
    },
    /// Prompt and answer exceed the context length that the model was trained on.
    #[error(
        "prompt and answer have {n_tokens} tokens, but the model was trained on at most {context} \
         (`max_position_embeddings`); quality may drop beyond that"
    )]
    BeyondContext {
        /// Number of tokens in the prompt and the answer together.
        n_tokens: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// An option that has no effect unless another one is set.
    #[error("`{option}` has no effect without `{needs}`")]
    Idle {
        /// The option.
        option: &'static str,
        /// The other option.
        needs: &'static str,
    },
}
