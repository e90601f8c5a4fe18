//! Answers that follow a grammar: a JSON schema, a regular expression or a list of choices.
//!
//! A [`Grammar`] is checked when it is made. [`Idefics::compile_grammar`](crate::Idefics::compile_grammar) compiles it
//! for a model, and [`Controls::grammar`](crate::Controls::grammar) applies it: in each step, tokens after which the
//! answer could not follow the grammar are forbidden. Where the answer is complete, end tokens are allowed.
//!
//! An answer may begin with one space, because models often write one; the rest of the answer is the value. An answer
//! that reaches its maximum length ends with [`FinishReason::Length`](crate::FinishReason::Length) and is incomplete.
//!
//! Parser and lexer: the crate `llguidance`, <https://github.com/guidance-ai/llguidance>.

mod compile;
mod error;
mod lark;
mod mask;
mod schema;
mod vocabulary;

use std::sync::Arc;

use llguidance::TokenParser;
use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use crate::logits::LogitsProcessor;
use crate::{Error, GenerationConfig, GenerationError};

pub use error::{GrammarError, GrammarKind};
pub use vocabulary::GrammarVocabulary;

/// Maximum size of a JSON schema, a regular expression or all choices together, in bytes.
const MAX_BYTES: usize = 256 << 10;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub struct Grammar(Source);

#[derive(Debug, Clone, PartialEq)]
enum Source {
    JsonSchema(Arc<Value>),
    Regex(Arc<str>),
    Choices(Arc<[String]>),
}

impl Grammar {
    /// Creates the grammar of the JSON values that satisfy a schema. Properties come in the order of the schema. There
    /// is at most one space or line break between two tokens of the JSON.
    ///
    /// The keywords that `llguidance` lists in its documentation are supported, among them `type`, `properties`,
    /// `required`, `additionalProperties`, `items`, `enum`, `const`, `anyOf`, `allOf`, `$ref` within the schema,
    /// `pattern`, `format` and limits of numbers and lengths. Other keywords of JSON Schema are rejected by name.
    ///
    /// # Errors
    /// [`GrammarError`] that names the key, its value and what is expected.
    pub fn json_schema(schema: Value) -> Result<Self, GrammarError> {
        let schema = schema::check(schema)?;
        check_length(GrammarKind::JsonSchema, schema.to_string().len())?;
        Self::checked(Source::JsonSchema(Arc::new(schema)))
    }

    /// Creates the grammar of a JSON schema that is written as text; see [`Grammar::json_schema`].
    ///
    /// # Errors
    /// [`GrammarError::NotJson`], [`GrammarError::TooLong`], and those of [`Grammar::json_schema`].
    pub fn from_json_schema_text(text: &str) -> Result<Self, GrammarError> {
        check_length(GrammarKind::JsonSchema, text.len())?;
        Self::json_schema(serde_json::from_str(text).map_err(|source| GrammarError::NotJson { source })?)
    }

    /// Creates the grammar of the texts that match a regular expression as a whole, in the syntax of the crate `regex`
    /// without look-around and word boundaries.
    ///
    /// # Errors
    /// [`GrammarError`] with the reason.
    pub fn regex(regex: &str) -> Result<Self, GrammarError> {
        check_length(GrammarKind::Regex, regex.len())?;
        if regex.is_empty() {
            return Err(GrammarError::EmptyRegex);
        }
        lark::check_regex(regex)?;
        Self::checked(Source::Regex(regex.into()))
    }

    /// Creates the grammar of a list of texts. An answer is one of these texts.
    ///
    /// # Errors
    /// [`GrammarError::NoChoices`] if there are none, or if one is empty; [`GrammarError::TooLong`].
    pub fn choices<S: Into<String>>(choices: impl IntoIterator<Item = S>) -> Result<Self, GrammarError> {
        let choices: Arc<[String]> = choices.into_iter().map(Into::into).collect();
        if choices.is_empty() || choices.iter().any(String::is_empty) {
            return Err(GrammarError::NoChoices);
        }
        check_length(GrammarKind::Choices, choices.iter().map(String::len).sum())?;
        Self::checked(Source::Choices(choices))
    }

    /// Checks a grammar with the library.
    fn checked(source: Source) -> Result<Self, GrammarError> {
        let grammar = Self(source);
        compile::validate(grammar.kind(), grammar.in_library())?;
        Ok(grammar)
    }

    /// Returns the kind of the grammar.
    pub fn kind(&self) -> GrammarKind {
        match &self.0 {
            Source::JsonSchema(_) => GrammarKind::JsonSchema,
            Source::Regex(_) => GrammarKind::Regex,
            Source::Choices(_) => GrammarKind::Choices,
        }
    }

    /// Rejects options that cannot be combined with a grammar: beam search and forced tokens.
    ///
    /// # Errors
    /// [`GenerationError::Conflict`].
    pub fn check_options(&self, options: &GenerationConfig) -> Result<(), GenerationError> {
        check_options(options)
    }

    /// Compiles the grammar for the tokens of a model.
    ///
    /// # Errors
    /// [`GrammarError::TooComplex`], [`GrammarError::Time`], [`GrammarError::NoAnswer`].
    pub fn compile(&self, vocabulary: &GrammarVocabulary) -> Result<CompiledGrammar, GrammarError> {
        let start = compile::parser(self.kind(), self.in_library(), vocabulary.factory.clone())?;
        Ok(CompiledGrammar { start: Arc::new(start), width: vocabulary.width })
    }

    fn in_library(&self) -> TopLevelGrammar {
        match &self.0 {
            Source::JsonSchema(schema) => lark::json_schema(schema),
            Source::Regex(regex) => lark::regex(regex),
            Source::Choices(choices) => lark::choices(choices),
        }
    }
}

fn check_length(what: GrammarKind, bytes: usize) -> Result<(), GrammarError> {
    if bytes <= MAX_BYTES { Ok(()) } else { Err(GrammarError::TooLong { what, bytes, limit: MAX_BYTES }) }
}

/// A grammar for the tokens of a model. It is cheap to clone, and any number of answers can use it at the same time.
#[derive(Clone)]
pub struct CompiledGrammar {
    start: Arc<TokenParser>,
    /// Number of logits of the model.
    width: usize,
}

impl std::fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledGrammar").field("width", &self.width).finish_non_exhaustive()
    }
}

impl CompiledGrammar {
    /// Creates the logits processor of an answer or a batch. `eos_token_ids` are the tokens that end an answer. All of
    /// them are allowed where the grammar may end, and nowhere else.
    ///
    /// If no token is left, [`LogitsProcessor::ending`] says whether the answer is complete.
    pub fn mask(&self, eos_token_ids: &[u32]) -> Box<dyn LogitsProcessor> {
        Box::new(mask::GrammarMask::new(self.start.clone(), self.width, eos_token_ids))
    }

    /// Rejects options that cannot be combined with a grammar, and models with another vocabulary.
    ///
    /// # Errors
    /// [`GenerationError::Conflict`], [`GrammarError::OtherVocabulary`].
    pub(crate) fn check(&self, options: &GenerationConfig, vocab_size: usize) -> Result<(), Error> {
        if self.width != vocab_size {
            return Err(GrammarError::OtherVocabulary { compiled: self.width, expected: vocab_size }.into());
        }
        Ok(check_options(options)?)
    }
}

/// See [`Grammar::check_options`].
fn check_options(options: &GenerationConfig) -> Result<(), GenerationError> {
    let conflict = |option, reason| Err(GenerationError::Conflict { option, other: "grammar", reason });
    if options.num_beams() > 1 {
        return conflict("num_beams", "a grammar follows one answer, while beams change between answers");
    }
    if options.forced_bos_token_id.is_some() {
        return conflict("forced_bos_token_id", "a forced token may break the grammar");
    }
    if !options.forced_eos_token_ids().is_empty() {
        return conflict("forced_eos_token_id", "a forced token may break the grammar");
    }
    Ok(())
}
