//! The checkpoint's tokenizer: ids from text, text from ids, and the ids that mean something.

mod fragments;
mod load;
mod pieces;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use serde::Deserialize;
use tokenizers::{Model, OffsetType, PreTokenizer, Token};

use crate::error::ProcessorError;
use crate::prompt::Literals;

pub(crate) use fragments::{Fragment, Fragments};
pub(crate) use load::{END_OF_UTTERANCE, TokenizerConfig, load};

/// Which release of the reference computes the ids.
///
/// The hub's Llama and Mistral checkpoints carry a `tokenizer.json` that puts a `▁` (a space) before *every* stretch
/// of text between special tokens. Release 4 uses it as it is, and that is how the models were trained. Release 5
/// builds a tokenizer of its own from the file's vocabulary when `tokenizer_config.json` names the class
/// `LlamaTokenizer`, and the processor inserts a space after an image where a word follows directly. The ids differ,
/// for example in `User:<image>What is this?<end_of_utterance>\nAssistant:`:
///
/// | | after the image | after `<end_of_utterance>` |
/// |---|---|---|
/// | `Transformers4` | `▁What ▁is ▁this ?` | `▁ <0x0A> Ass istant :` |
/// | `Transformers5`, `"legacy": true` | `▁What ▁is ▁this ?` | `▁ <0x0A> Ass istant :` |
/// | `Transformers5`, `"legacy": false` | `▁What ▁is ▁this ?` | `<0x0A> Ass istant :` |
///
/// and with a space in the text already, as in `<image> What`, release 4 encodes `▁ ▁What` and release 5 `▁What`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compatibility {
    /// What release 5.23 computes.
    #[default]
    Transformers5,
    /// `tokenizer.json` as the checkpoint ships it, and no inserted space: release 4, and the models' training.
    Transformers4,
}

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// For messages.
    path: PathBuf,
    ids: SpecialIds,
    /// Every token that user text must not become, with its id: special ones, and those that the prompt is built of.
    protected: Vec<(String, u32)>,
}

/// The tokens with a meaning, as far as the checkpoint names them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    image: u32,
    fake: u32,
    end_of_utterance: Option<u32>,
}

impl Tokenizer {
    /// The ids of `text`, in which every special token counts.
    ///
    /// With `add_special_tokens`, what the checkpoint puts around a text is added: `<s>` in front.
    ///
    /// # Errors
    /// [`ProcessorError::Encode`] or [`ProcessorError::TokenizerPanic`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ProcessorError> {
        self.guarded("encoding", || Ok(self.inner.encode_fast(text, add_special_tokens)?.get_ids().to_vec()))
    }

    /// The ids of `text`, in which every special token counts, with `words` behind it, in which none does.
    ///
    /// What the checkpoint puts around a text is added, as with [`Tokenizer::encode`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_words(&self, text: &str, words: &str) -> Result<Vec<u32>, ProcessorError> {
        let tokens: Vec<&str> = self.protected().collect();
        let mut literals = Literals::new([text, words].into_iter().chain(tokens.iter().copied()));
        let words = literals.protect(words, &tokens);
        self.encode_literal(&format!("{text}{words}"), &literals, true)
    }

    /// The ids of `text`, in which a special token counts unless `literals` broke it.
    pub(crate) fn encode_literal(
        &self,
        text: &str,
        literals: &Literals,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, ProcessorError> {
        if literals.is_empty() {
            return self.encode(text, add_special_tokens);
        }
        self.guarded("encoding", || {
            // The steps of `tokenizers::Tokenizer::encode`, with the user's characters put back after special tokens
            // were cut out and before anything looks at the words.
            let added = self.inner.get_added_vocabulary();
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            pieces.normalize(|piece| {
                if piece.get().contains(|character| literals.is_stand_in(character)) {
                    piece.map(|character| literals.restore_char(character));
                }
                Ok(())
            })?;
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.word_pieces(piece.get()))?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
            Ok(self.inner.post_process(encoding, None, add_special_tokens)?.get_ids().to_vec())
        })
    }

    /// The model's tokens for a piece of text without special tokens. Where merges would spell one nevertheless (as
    /// `</s>`, which is in the vocabulary), its first character becomes a token of its own.
    fn word_pieces(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = Vec::new();
        for token in self.inner.get_model().tokenize(text)? {
            let (start, end) = token.offsets;
            let spelled = text.get(start..end).unwrap_or_default();
            let special = self.protected.iter().any(|(content, id)| *id == token.id && content == spelled);
            let Some(first) = spelled.chars().next().filter(|first| special && spelled.len() > first.len_utf8()) else {
                tokens.push(token);
                continue;
            };
            let middle = start + first.len_utf8();
            for (from, part) in [(start, &text[start..middle]), (middle, &text[middle..end])] {
                let shifted = self.word_pieces(part)?.into_iter().map(|part| {
                    let offsets = (part.offsets.0 + from, part.offsets.1 + from);
                    Token::new(part.id, part.value, offsets)
                });
                tokens.extend(shifted);
            }
        }
        Ok(tokens)
    }

    /// The text of `ids`. `skip_special_tokens` leaves special tokens out, `<image>` and `<unk>` among them.
    ///
    /// As in the reference, ids outside the vocabulary are left out, one space at the very beginning is dropped, and
    /// no space before punctuation is.
    ///
    /// # Errors
    /// [`ProcessorError::Encode`] or [`ProcessorError::TokenizerPanic`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, ProcessorError> {
        self.guarded("decoding", || self.inner.decode(ids, skip_special_tokens))
    }

    /// The id of `token`, which is written as in the vocabulary (`▁the`, not ` the`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of `id`, written as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many ids there are, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The greatest id that encoding can produce. A model needs at least one embedding more.
    pub fn max_id(&self) -> u32 {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().keys().copied().max();
        let model = (self.inner.get_vocab_size(false) as u32).saturating_sub(1);
        added.unwrap_or(0).max(model)
    }

    /// `<s>`, in front of every prompt.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.ids.bos
    }

    /// `</s>`, the end of a text.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.ids.eos
    }

    /// `<unk>`, for what the vocabulary cannot spell.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.ids.unk
    }

    /// The padding token that the tokenizer names.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.ids.pad
    }

    /// The padding token to fill short rows with: the tokenizer's own, else its unknown token, else its end token,
    /// else 0. What stands there is masked and does not change a result.
    pub fn pad_token_id_or_fallback(&self) -> u32 {
        self.ids.pad.or(self.ids.unk).or(self.ids.eos).unwrap_or(0)
    }

    /// `<image>`: one vector of an image.
    pub fn image_token_id(&self) -> u32 {
        self.ids.image
    }

    /// `<fake_token_around_image>`: before and after an image.
    pub fn fake_token_id(&self) -> u32 {
        self.ids.fake
    }

    /// `<end_of_utterance>`: the end of a turn. Base checkpoints of the first Idefics have none.
    pub fn end_of_utterance_id(&self) -> Option<u32> {
        self.ids.end_of_utterance
    }

    /// The tokens that must not come out of user text.
    pub(crate) fn protected(&self) -> impl Iterator<Item = &str> {
        self.protected.iter().map(|(content, _)| content.as_str())
    }

    /// The content of one of the ids above.
    pub(crate) fn content(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    fn guarded<T>(
        &self,
        doing: &'static str,
        run: impl FnOnce() -> tokenizers::Result<T>,
    ) -> Result<T, ProcessorError> {
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(ProcessorError::Encode { error }),
            Err(_) => Err(ProcessorError::TokenizerPanic { path: self.path.clone(), doing }),
        }
    }
}
