//! The tokens of a model as bytes, in the form that the grammar library searches.

use std::sync::Arc;

use idefics_processor::Tokenizer;
use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::{GrammarError, compile};

/// Maximum number of bytes in a token. Grammars do not use longer tokens. The library's tree has at most 1024 levels.
const MAX_PIECE: usize = 512;

/// Maximum number of bytes of all tokens together. The limit bounds the number of nodes in the library's tree.
const MAX_BYTES: usize = (1 << 22) - 2;

/// Maximum number of tokens: ids have 24 bits in the library, and one of them is reserved.
const MAX_TOKENS: usize = (1 << 24) - 2;

/// The tokens of a model, prepared for grammars. Preparing them takes longer than compiling a grammar, so keep and
/// reuse this value, as [`Idefics::compile_grammar`](crate::Idefics::compile_grammar) does.
#[derive(Clone)]
pub struct GrammarVocabulary {
    pub(super) factory: Arc<ParserFactory>,
    /// Number of logits.
    pub(super) width: usize,
}

impl std::fmt::Debug for GrammarVocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarVocabulary").field("width", &self.width).finish_non_exhaustive()
    }
}

impl GrammarVocabulary {
    /// Prepares the tokens of `tokenizer` for a model with `width` logits. Ids without a text are never generated under
    /// a grammar.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`] if there are too many tokens or bytes.
    pub fn new(tokenizer: &Tokenizer, width: usize) -> Result<Self, GrammarError> {
        let limited = |what, found, limit| match found <= limit {
            true => Ok(()),
            false => Err(GrammarError::Vocabulary { what, found, limit }),
        };
        limited("tokens", width, MAX_TOKENS)?;
        let mut words: Vec<Vec<u8>> = (0..width as u32).map(|id| word(tokenizer, id)).collect();
        limited("bytes", words.iter().map(Vec::len).sum(), MAX_BYTES)?;
        // A model may have several end tokens, or none. In the library, the id after the last token stands for all of
        // them.
        words.push(Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, width as u32), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| GrammarError::Tokens { reason: format!("{error:#}") })?;
        factory.quiet();
        *factory.limits_mut() = compile::limits();
        Ok(Self { factory: Arc::new(factory), width })
    }
}

/// Returns the bytes of a token. Special tokens begin with a byte that no text contains.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let piece = tokenizer.piece(id);
    match piece.len() {
        0 => piece,
        1..=MAX_PIECE if tokenizer.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], piece.as_slice()].concat(),
        1..=MAX_PIECE => piece,
        _ => Vec::new(),
    }
}
