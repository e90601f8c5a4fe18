//! What is wrong with options, and what is merely odd.

/// Why generation options cannot be followed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// An option that would change the result and is not implemented.
    #[error("`{option}` is {value}: not supported, only {neutral} is")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// The value that changes nothing.
        neutral: String,
    },
    /// No token may be generated.
    #[error("`{option}` is {value}: no room for a token after a prompt of {prompt_tokens}")]
    NoRoom {
        /// The option.
        option: &'static str,
        /// Its value, in tokens.
        value: usize,
        /// Tokens of the longest prompt.
        prompt_tokens: usize,
    },
    /// Beams, answers or tokens that would take more memory than any sample gets.
    #[error(
        "`{option}` is {value}: with {max_new_tokens} new tokens each, a sample would take about {needed:.1} GiB, the \
         limit is {limit:.0}; ask for fewer or shorter ones"
    )]
    Memory {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// Tokens of an answer at most.
        max_new_tokens: usize,
        /// GiB that the sample would take.
        needed: f64,
        /// GiB that it may take.
        limit: f64,
    },
    /// A number that means nothing there.
    #[error("`{option}` is {value}, expected {expected}")]
    OutOfRange {
        /// The option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// Two options that contradict each other.
    #[error("`{option}` and `{other}` cannot be followed together: {reason}")]
    Conflict {
        /// The option.
        option: &'static str,
        /// The other one.
        other: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A list without entries, or an entry without anything in it.
    #[error("`{option}` is empty or holds an empty sequence")]
    Empty {
        /// The option.
        option: &'static str,
    },
    /// An id that the model cannot generate.
    #[error("`{option}` holds token id {id}, the model's vocabulary has {vocab_size}")]
    TokenId {
        /// The option.
        option: &'static str,
        /// The id.
        id: u32,
        /// Width of the logits.
        vocab_size: usize,
    },
    /// An option that needs the text of tokens.
    #[error("`{option}` needs a tokenizer, none was given")]
    NoTokenizer {
        /// The option.
        option: &'static str,
    },
}

impl GenerationError {
    /// The options that it is about.
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

/// Something wrong with options that can be used all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationWarning {
    /// A key that is no option of generation.
    #[error("`{key}` is not a generation option and is ignored")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// An option of the model folder that would change the result, is not implemented, and does not count.
    #[error("`{option}` is {value}: not supported, and ignored")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// An option of the model folder with ids that the model cannot generate; what holds them does not count.
    #[error("`{option}` has token ids that are not below the vocabulary size {vocab_size}; they are ignored")]
    TokenIds {
        /// The option.
        option: &'static str,
        /// Width of the logits.
        vocab_size: usize,
    },
    /// Prompt and answer are longer than the context that the model was trained on.
    #[error(
        "prompt and answer have {n_tokens} tokens, the model was trained on at most {context} (`max_position_embeddings`): \
         quality may drop beyond it"
    )]
    BeyondContext {
        /// Tokens of prompt and answer together.
        n_tokens: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// An option that means nothing without another.
    #[error("`{option}` means nothing without `{needs}`")]
    Idle {
        /// The option.
        option: &'static str,
        /// What it needs.
        needs: &'static str,
    },
}
