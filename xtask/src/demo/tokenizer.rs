//! Trains a byte-level BPE tokenizer on texts about scenes.

use idefics_checkpoint::write_atomically;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, anyhow};
pub(super) use idefics_generate::processor::END_OF_UTTERANCE;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerImpl};

/// The special tokens, with ids 0 to 5.
pub(super) const SPECIAL_TOKENS: [&str; 6] =
    ["<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", END_OF_UTTERANCE];

/// Size of the vocabulary: special tokens, 256 bytes, and merges.
const VOCAB_SIZE: usize = 640;
/// Number of texts to train on.
const N_TEXTS: usize = 20_000;

/// Returns the id of one of [`SPECIAL_TOKENS`].
pub(super) fn special_id(token: &str) -> u32 {
    SPECIAL_TOKENS.iter().position(|special| *special == token).expect("`token` is a special token") as u32
}

/// Trains the tokenizer, writes `tokenizer.json`, and returns the size of the vocabulary.
pub(super) fn train(folder: &Path, seed: u64) -> Result<usize> {
    let special = |token: &&str| AddedToken::from(*token, true).normalized(false);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB_SIZE)
        .special_tokens(SPECIAL_TOKENS.iter().map(special).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    type ByteLevelBpe = TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, TemplateProcessing, ByteLevel>;
    let mut tokenizer = ByteLevelBpe::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let texts = idefics_demo::corpus(seed, N_TEXTS).map(|text| {
        // Special tokens are removed, so that no merges are learned from their text.
        SPECIAL_TOKENS.iter().fold(text, |text, special| text.replace(special, "\n"))
    });
    tokenizer.train(&mut trainer, texts).map_err(|error| anyhow!("cannot train the tokenizer: {error}"))?;
    let start = TemplateProcessing::builder()
        .try_single("<s> $A")
        .and_then(|builder| builder.try_pair("<s> $A $B"))
        .map_err(|error| anyhow!("cannot build the tokenizer's template: {error}"))?
        .special_tokens(vec![("<s>", special_id("<s>"))])
        .build()?;
    tokenizer.with_post_processor(Some(start));
    let text = tokenizer.to_string(true).map_err(|error| anyhow!("cannot serialise the tokenizer: {error}"))?;
    write_atomically(&folder.join("tokenizer.json"), |file| file.write_all(text.as_bytes()))?;
    Ok(tokenizer.get_vocab_size(true))
}
