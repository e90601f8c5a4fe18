//! The bytes that each token id contributes to a text.

use tokenizers::DecoderWrapper;

use super::{Tokenizer, fragments::bytes_of};

impl Tokenizer {
    /// Returns the bytes that `id` contributes inside a text: `▁the` gives ` the`, and `<0x0A>` gives a line break. A
    /// token for a part of a character gives its bytes, where [`Tokenizer::decode`] would write U+FFFD. The result is
    /// empty for unknown ids.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return token.into_bytes();
        }
        if let Some(byte) = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
            && let Ok(byte) = u8::from_str_radix(byte, 16)
        {
            return vec![byte];
        }
        match self.is_byte_level() {
            true => bytes_of(&token),
            false => token.replace('▁', " ").into_bytes(),
        }
    }

    fn is_byte_level(&self) -> bool {
        match self.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(sequence)) => {
                sequence.get_decoders().iter().any(|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_)))
            }
            _ => false,
        }
    }
}
