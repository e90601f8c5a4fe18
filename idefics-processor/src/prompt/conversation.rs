//! The conversation format of IDEFICS v1. Its checkpoints have no chat template.

use crate::prompt::{Content, ImageTokens, Message, MessageContent};

/// Writes a conversation in the format of the instruct checkpoints, with one placeholder per image. The function `text`
/// is applied to each text before it is inserted. Parts that are neither text nor image are left out.
///
/// Source: the prompts of the public guides: `User: …<end_of_utterance>\nAssistant: …<end_of_utterance>\nUser:`. If a
/// turn begins with an image, there is no space after the colon.
pub(crate) fn conversation(
    messages: &[Message],
    add_generation_prompt: bool,
    tokens: &ImageTokens,
    end_of_utterance: &str,
    mut text: impl FnMut(&str) -> String,
) -> String {
    let mut written = String::new();
    for message in messages {
        if !written.is_empty() {
            written.push('\n');
        }
        written.push_str(&capitalized(&message.role));
        written.push(':');
        if let MessageContent::Text(words) = &message.content {
            written.push(' ');
            written.push_str(&text(words));
        }
        for (index, content) in message.parts().iter().enumerate() {
            match content {
                Content::Image { .. } => written.push_str(&tokens.image),
                Content::Text { text: words, .. } => {
                    if index == 0 {
                        written.push(' ');
                    }
                    written.push_str(&text(words));
                }
                Content::Video { .. } | Content::Other(_) => {}
            }
        }
        written.push_str(end_of_utterance);
    }
    match add_generation_prompt {
        true => written + "\nAssistant:",
        false => written,
    }
}

/// Converts the first letter to upper case and the rest to lower case.
fn capitalized(role: &str) -> String {
    let mut letters = role.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters.map(|letter| letter.to_ascii_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageSource;

    #[test]
    fn conversation_matches_format_of_public_guides() {
        let tokens = ImageTokens { image: "<image>".to_owned(), fake: "<f>".to_owned(), image_seq_len: 1 };
        let picture = || Content::image("a.png".parse::<ImageSource>().unwrap());
        let messages = [
            Message::new("user", vec![Content::text("What?"), picture()]),
            Message::new("assistant", "A dog."),
            Message::new("user", vec![picture(), Content::text("And that?")]),
        ];
        let written = conversation(&messages, true, &tokens, "<e>", str::to_owned);
        assert_eq!(written, "User: What?<image><e>\nAssistant: A dog.<e>\nUser:<image>And that?<e>\nAssistant:");
    }
}
