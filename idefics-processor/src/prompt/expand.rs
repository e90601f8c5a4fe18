//! Image placeholders written out to as many image tokens as the model has vectors for the image.

use crate::prompt::Literals;
use crate::tokenizer::Compatibility;

/// The strings and counts of which Idefics2 builds an image's place in the text.
///
/// Source: `Idefics2Processor.__init__`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTokens {
    /// One vector of the image, and in the input its placeholder: `<image>`.
    pub image: String,
    /// What stands around an image: `<fake_token_around_image>`.
    pub fake: String,
    /// Vectors of one (sub-)image: `image_seq_len` tokens, equal to the resampler's `resampler_n_latents`.
    pub image_seq_len: usize,
}

impl ImageTokens {
    /// Placeholders in `text`.
    pub fn count(&self, text: &str) -> usize {
        text.matches(&self.image).count()
    }
}

/// Writes each placeholder of `text` out: a fake token, `image_seq_len` image tokens, a fake token, for each of the
/// image's `sub_images` (1, or 5 with splitting). Two fake tokens in a row become one.
///
/// Under [`Compatibility::Transformers5`] a space follows a fake token that stands before anything but white space and
/// `<`: the tokenizers that this version builds do not begin a word after a special token by themselves.
/// `literals` tells which characters stand for others.
///
/// Source: `Idefics2Processor.__call__`.
pub fn expand_images(
    text: &str,
    tokens: &ImageTokens,
    sub_images: usize,
    literals: &Literals,
    compatibility: Compatibility,
) -> String {
    let ImageTokens { image, fake, image_seq_len } = tokens;
    let block = format!("{fake}{}{fake}", image.repeat(*image_seq_len));
    let text = text.replace(image.as_str(), &block.repeat(sub_images)).replace(&fake.repeat(2), fake);
    match compatibility {
        Compatibility::Transformers4 => text,
        Compatibility::Transformers5 => space_after_fakes(&text, fake, literals),
    }
}

fn space_after_fakes(text: &str, fake: &str, literals: &Literals) -> String {
    let mut spaced = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(start) = rest.find(fake) {
        let (before, after) = rest.split_at(start + fake.len());
        spaced.push_str(before);
        let next = after.chars().next().map(|character| literals.restore_char(character));
        if next.is_some_and(|character| character != '<' && !is_python_space(character)) {
            spaced.push(' ');
        }
        rest = after;
    }
    spaced.push_str(rest);
    spaced
}

/// What `\s` matches in the reference's language: white space, and the four separators U+001C to U+001F.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> ImageTokens {
        ImageTokens { image: "<image>".to_owned(), fake: "<f>".to_owned(), image_seq_len: 2 }
    }

    fn expand(text: &str, sub_images: usize, compatibility: Compatibility) -> String {
        expand_images(text, &tokens(), sub_images, &Literals::default(), compatibility)
    }

    #[test]
    fn one_image_is_a_block_between_fakes() {
        let expanded = expand("User:<image> What?", 1, Compatibility::Transformers5);
        assert_eq!(expanded, "User:<f><image><image><f> What?");
    }

    #[test]
    fn adjacent_blocks_share_their_fakes() {
        let expanded = expand("<image><image>\n", 1, Compatibility::Transformers5);
        assert_eq!(expanded, "<f><image><image><f><image><image><f>\n");
        let split = expand("<image>", 5, Compatibility::Transformers5);
        assert_eq!(split.matches("<f>").count(), 6);
        assert_eq!(split.matches("<image>").count(), 10);
    }

    #[test]
    fn fakes_of_the_text_collapse_in_pairs_as_in_the_reference() {
        assert_eq!(expand("<f><f><f>", 1, Compatibility::Transformers4), "<f><f>");
    }

    #[test]
    fn only_version_5_puts_a_space_before_a_word() {
        assert_eq!(expand("<image>What?", 1, Compatibility::Transformers5), "<f><image><image><f> What?");
        assert_eq!(expand("<image>What?", 1, Compatibility::Transformers4), "<f><image><image><f>What?");
        assert_eq!(expand("<image><b>", 1, Compatibility::Transformers5), "<f><image><image><f><b>");
        assert_eq!(expand("<image>\u{1C}", 1, Compatibility::Transformers5), "<f><image><image><f>\u{1C}");
    }
}
