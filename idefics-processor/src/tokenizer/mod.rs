//! The checkpoint's tokenizer: encoding, decoding, and the ids of special tokens.

mod fragments;
mod growth;
mod load;
mod pieces;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use serde::Deserialize;
use tokenizers::{Model, OffsetType, PreTokenizer, Token};

use crate::error::ProcessorError;
use crate::prompt::Literals;

pub(crate) use fragments::{Fragment, Fragments};
pub use load::END_OF_UTTERANCE;
pub(crate) use load::{TokenizerConfig, load};

/// The release of the reference to reproduce.
///
/// Llama and Mistral checkpoints have a `tokenizer.json` that puts a `▁` (a space) before *every* piece of text
/// between special tokens. Release 4 uses this file unchanged, and the models were trained that way. If
/// `tokenizer_config.json` names the class `LlamaTokenizer`, release 5 builds its own tokenizer from the file's
/// vocabulary, and the processor inserts a space between an image and a word that follows it. The ids differ, for
/// example in `User:<image>What is this?<end_of_utterance>\nAssistant:`:
///
/// | | after the image | after `<end_of_utterance>` |
/// |---|---|---|
/// | `Transformers4` | `▁What ▁is ▁this ?` | `▁ <0x0A> Ass istant :` |
/// | `Transformers5`, `"legacy": true` | `▁What ▁is ▁this ?` | `▁ <0x0A> Ass istant :` |
/// | `Transformers5`, `"legacy": false` | `▁What ▁is ▁this ?` | `<0x0A> Ass istant :` |
///
/// If the text already has a space, as in `<image> What`, release 4 gives `▁ ▁What`, and release 5 gives `▁What`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compatibility {
    /// The ids of release 5.23.
    #[default]
    Transformers5,
    /// The ids of release 4, as in the models' training: `tokenizer.json` as shipped, and no inserted space.
    Transformers4,
}

/// A checkpoint's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Path of `tokenizer.json`, for error messages.
    path: PathBuf,
    ids: SpecialIds,
    /// Text and id of every token that user text must not produce: special tokens, and the image, fake and end-of-turn
    /// tokens.
    protected: Vec<(String, u32)>,
}

/// Ids of the special tokens; `None` if the checkpoint does not name the token.
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
    /// Encodes `text` and parses its special tokens.
    ///
    /// `add_special_tokens` adds the tokens that the checkpoint puts around a text, such as `<s>` at the start.
    ///
    /// # Errors
    /// [`ProcessorError::Encode`] or [`ProcessorError::TokenizerPanic`] if the `tokenizers` library fails.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ProcessorError> {
        self.guarded("encoding", || Ok(self.inner.encode_fast(text, add_special_tokens)?.get_ids().to_vec()))
    }

    /// Encodes `text` followed by `words`. Special tokens are parsed in `text`, but not in `words`.
    ///
    /// The tokens that the checkpoint puts around a text are added, as in [`Tokenizer::encode`].
    ///
    /// # Errors
    /// The errors of [`Tokenizer::encode`].
    pub fn encode_with_literal_text(&self, text: &str, words: &str) -> Result<Vec<u32>, ProcessorError> {
        let tokens: Vec<&str> = self.protected().collect();
        let mut literals = Literals::new([text, words].into_iter().chain(tokens.iter().copied()));
        let words = literals.protect(words, &tokens);
        self.encode_literal(&format!("{text}{words}"), &literals, true)
    }

    /// Encodes `text` and parses its special tokens, unless they are masked by stand-ins of `literals`.
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
            // The steps of `tokenizers::Tokenizer::encode`. The user's characters are restored after special tokens
            // are extracted and before the text is split into words.
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

    /// Tokenises a piece of text without producing special tokens. If the merges give a special token, because it is in
    /// the vocabulary (such as `</s>`), its first character and the rest of it are tokenised separately.
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

    /// Decodes `ids` to text. `skip_special_tokens` leaves out special tokens, including `<image>` and `<unk>`.
    ///
    /// As in the reference, ids outside the vocabulary are left out, one space at the start of the text is dropped,
    /// and spaces before punctuation are kept.
    ///
    /// # Errors
    /// [`ProcessorError::Encode`] or [`ProcessorError::TokenizerPanic`] if the `tokenizers` library fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, ProcessorError> {
        self.guarded("decoding", || self.inner.decode(ids, skip_special_tokens))
    }

    /// Returns the id of `token`, spelled as in the vocabulary (`▁the`, not ` the`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the token of `id`, spelled as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns whether `id` is a special token, which [`Tokenizer::decode`] can leave out, or a token that user text
    /// must not produce, such as `<image>`.
    pub fn is_special(&self, id: u32) -> bool {
        self.protected.binary_search_by_key(&id, |(_, special)| *special).is_ok()
    }

    /// Returns the number of ids, including added tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Returns the largest id that encoding can produce. The model needs at least `max_id() + 1` embeddings.
    pub fn max_id(&self) -> u32 {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().keys().copied().max();
        let model = (self.inner.get_vocab_size(false) as u32).saturating_sub(1);
        added.unwrap_or(0).max(model)
    }

    /// Returns the id of `<s>`, which starts a text.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.ids.bos
    }

    /// Returns the id of `</s>`, which ends a text.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.ids.eos
    }

    /// Returns the id of `<unk>`, which replaces text that the vocabulary cannot represent.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.ids.unk
    }

    /// Returns the id of the padding token, if the tokenizer names one.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.ids.pad
    }

    /// Returns the id to pad short rows with: that of the padding token, else of the unknown token, else of the end
    /// token, else 0. Padding is masked and does not affect results.
    pub fn pad_token_id_or_fallback(&self) -> u32 {
        self.ids.pad.or(self.ids.unk).or(self.ids.eos).unwrap_or(0)
    }

    /// Returns the id of `<image>`, which marks the place of one image vector.
    pub fn image_token_id(&self) -> u32 {
        self.ids.image
    }

    /// Returns the id of `<fake_token_around_image>`, the token before and after an image.
    pub fn fake_token_id(&self) -> u32 {
        self.ids.fake
    }

    /// Returns the id of `<end_of_utterance>`, which ends a turn. Base checkpoints of IDEFICS v1 lack this token.
    pub fn end_of_utterance_id(&self) -> Option<u32> {
        self.ids.end_of_utterance
    }

    /// Returns the tokens that user text must not produce.
    pub(crate) fn protected(&self) -> impl Iterator<Item = &str> {
        self.protected.iter().map(|(content, _)| content.as_str())
    }

    /// Returns the text of the token `id`, or an empty text for an unknown id.
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
