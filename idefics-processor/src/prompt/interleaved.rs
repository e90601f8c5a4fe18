//! Prompts of the first Idefics: texts and images in a row.
//!
//! Source: `IdeficsProcessor.__call__` of transformers 5.23.

use crate::prompt::{ImageTokens, PromptPart};

/// What the text of a prompt list depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InterleavedRules<'a> {
    pub(crate) tokens: &'a ImageTokens,
    /// Stands in front of everything.
    pub(crate) bos: &'a str,
    /// Is put between a text and a text right before it.
    pub(crate) end_of_utterance: Option<&'a str>,
    /// Ends everything.
    pub(crate) eos: Option<&'a str>,
}

impl InterleavedRules<'_> {
    /// The text of a prompt list: spaces around each text are dropped, an image becomes a fake token, an image token
    /// and a fake token, of which images that follow one another share one.
    pub(crate) fn text_of_parts(&self, parts: &[PromptPart]) -> String {
        let mut text = self.bos.to_owned();
        let mut before: Option<&PromptPart> = None;
        for part in parts {
            match part {
                PromptPart::Text(words) => {
                    if let (Some(PromptPart::Text(_)), Some(end)) = (before, self.end_of_utterance) {
                        text.push_str(end);
                    }
                    text.push_str(words.trim_matches(' '));
                }
                PromptPart::Image(_) => text.push_str(&self.image(matches!(before, Some(PromptPart::Image(_))))),
            }
            before = Some(part);
        }
        text + self.eos.unwrap_or_default()
    }

    /// A text with a placeholder for each image, written out.
    pub(crate) fn text_of_placeholders(&self, text: &str) -> String {
        let mut written = self.bos.to_owned();
        let mut is_behind_image = false;
        for (index, words) in text.split(&self.tokens.image).enumerate() {
            if index > 0 {
                written.push_str(&self.image(is_behind_image));
            }
            written.push_str(words);
            is_behind_image = index > 0 && words.is_empty();
        }
        written + self.eos.unwrap_or_default()
    }

    fn image(&self, shares_fake: bool) -> String {
        let ImageTokens { image, fake, .. } = self.tokens;
        match shares_fake {
            true => format!("{image}{fake}"),
            false => format!("{fake}{image}{fake}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageSource;

    fn tokens() -> ImageTokens {
        ImageTokens { image: "<image>".to_owned(), fake: "<f>".to_owned(), image_seq_len: 1 }
    }

    fn image() -> PromptPart {
        PromptPart::Image("a.png".parse::<ImageSource>().unwrap())
    }

    fn words(text: &str) -> PromptPart {
        PromptPart::Text(text.to_owned())
    }

    fn text(parts: &[PromptPart], end_of_utterance: Option<&str>) -> String {
        InterleavedRules { tokens: &tokens(), bos: "<s>", end_of_utterance, eos: None }.text_of_parts(parts)
    }

    #[test]
    fn neighbouring_images_share_a_fake_token() {
        assert_eq!(text(&[image(), image(), words(" a "), image()], None), "<s><f><image><f><image><f>a<f><image><f>");
    }

    #[test]
    fn spaces_are_dropped_and_line_breaks_kept() {
        assert_eq!(text(&[words("  Story: \n"), words("\n x ")], None), "<s>Story: \n\n x");
    }

    #[test]
    fn turns_end_between_texts_only() {
        let parts = [words("User:"), image(), words("What?"), words("\nAssistant:"), image()];
        assert_eq!(text(&parts, Some("<e>")), "<s>User:<f><image><f>What?<e>\nAssistant:<f><image><f>");
    }

    #[test]
    fn placeholders_are_written_out_as_images_of_a_list() {
        let rules = InterleavedRules { tokens: &tokens(), bos: "<s>", end_of_utterance: None, eos: Some("</s>") };
        assert_eq!(
            rules.text_of_placeholders("<image><image> a<image>"),
            "<s><f><image><f><image><f> a<f><image><f></s>"
        );
        assert_eq!(rules.text_of_placeholders("no image"), "<s>no image</s>");
    }
}
