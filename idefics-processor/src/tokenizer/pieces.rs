//! What each id adds to a text, in bytes.

use tokenizers::DecoderWrapper;

use super::Tokenizer;

impl Tokenizer {
    /// The bytes that `id` adds to a text that goes on: `▁the` adds ` the`, `<0x0A>` a line break. Pieces of a character
    /// are pieces here, where [`Tokenizer::decode`] would put U+FFFD. Nothing for ids that are no token.
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
            true => token.chars().flat_map(byte_of).collect(),
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

/// The byte that a character of a byte-level vocabulary stands for; other characters stand for themselves.
///
/// Source: GPT-2's `bytes_to_unicode`: printable bytes are themselves, the others follow from U+0100 on.
fn byte_of(character: char) -> Vec<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(character);
    let printable = u8::try_from(code).ok().filter(|&byte| is_printable(byte));
    let moved = || (0..=255).filter(|&byte| !is_printable(byte)).nth(code.checked_sub(0x100)? as usize);
    match printable.or_else(moved) {
        Some(byte) => vec![byte],
        None => character.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::byte_of;

    #[test]
    fn byte_level_characters_are_gpt2s() {
        let bytes: Vec<u8> = "ĠAĊÃ©".chars().flat_map(byte_of).collect();
        assert_eq!(bytes, b" A\n\xC3\xA9");
        assert_eq!(byte_of('Ń'), [0xAD]);
    }
}
