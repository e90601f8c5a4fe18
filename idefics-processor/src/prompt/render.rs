//! Renders conversations to text: with the checkpoint's chat template, or in the format of IDEFICS v1.

use serde_json::{Value, json};

use crate::checkpoint::shorten;
use crate::error::ProcessorError;
use crate::prompt::conversation::conversation;
use crate::prompt::json::counted;
use crate::prompt::{
    Chat, ChatTemplate, Content, ImageTokens, Literals, MAX_DEPTH, Message, SpecialTokensInText, TextLimits, Variables,
    find_token, is_word,
};
use crate::video::VideoError;

/// Renders the conversations of a checkpoint to text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conversations<'a> {
    pub(crate) template: Option<&'a ChatTemplate>,
    /// End-of-turn token for conversations without a template.
    pub(crate) end_of_turn: Option<&'a str>,
    pub(crate) image_tokens: &'a ImageTokens,
    /// Special tokens as template variables: name (`bos_token`) and text (`<s>`).
    pub(crate) named_tokens: &'a [(String, String)],
    /// Tokens that user text must not produce.
    pub(crate) protected: &'a [&'a str],
    pub(crate) special_tokens_in_text: SpecialTokensInText,
}

impl Conversations<'_> {
    /// Renders a conversation. Special tokens that the user typed are masked by the stand-ins in the returned
    /// [`Literals`].
    ///
    /// # Errors
    /// A [`ProcessorError`] for row `row`.
    pub(crate) fn render(&self, chat: &Chat, row: usize) -> Result<(String, Literals), ProcessorError> {
        if self.template.is_none() && self.end_of_turn.is_none() {
            return Err(ProcessorError::NoChatTemplate { row });
        }
        let variables = Variables::new(chat);
        if self.special_tokens_in_text == SpecialTokensInText::Reject {
            for (variable, text) in variables.strings() {
                if let Some(token) = find_token(text, self.protected) {
                    let (variable, token) = (variable.to_owned(), token.to_owned());
                    return Err(ProcessorError::SpecialTokenInText { row, variable, token });
                }
            }
        }
        let source = self.template.map_or("User:Assistant:", ChatTemplate::source);
        let written = variables.strings().into_iter().map(|(_, text)| text).chain([source]);
        let mut literals = Literals::new(written.chain(self.protected.iter().copied()));
        let is_literal = self.special_tokens_in_text != SpecialTokensInText::Parse;
        let mut protect = |text: &str| match is_literal {
            true => literals.protect(text, self.protected),
            false => text.to_owned(),
        };
        let rendered = match self.template {
            Some(template) => {
                self.render_template(template, variables.map_strings(self.protected, &mut protect), row)?
            }
            None => self.render_turns(chat, row, protect)?,
        };
        Ok((rendered, literals))
    }

    /// Renders a conversation with the chat template.
    ///
    /// The templates of Idefics2 only read parts, so a `content` that is a string is lost in Transformers. If that
    /// happens here, the conversation is rendered a second time, with each lost string as a text part. The second
    /// rendering is only used if it contains all the lost texts and the template does not just print the list of parts.
    ///
    /// The templates of text models only read strings. If a template fails and all parts are texts, the conversation is
    /// rendered with strings.
    fn render_template(
        &self,
        template: &ChatTemplate,
        mut variables: Variables,
        row: usize,
    ) -> Result<String, ProcessorError> {
        let tokens = || self.named_tokens.iter().map(|(name, token)| (name.as_str(), token.as_str()));
        let rendered = template.render(&variables.with_tokens(tokens()), row);
        if let Err(ProcessorError::Render { .. }) = rendered
            && let Some(strings) = variables.with_strings()
            && let Ok(as_strings) = template.render(&strings.with_tokens(tokens()), row)
        {
            return Ok(as_strings);
        }
        let rendered = rendered?;
        let mut lost = Vec::new();
        for message in variables.messages_mut() {
            let Some(content) = message.get_mut("content") else { continue };
            let words = content.as_str().map(|text| text.trim().to_owned()).unwrap_or_default();
            if !words.is_empty() && !rendered.contains(&words) {
                let text = content.take();
                *content = json!([{"type": "text", "text": text}]);
                lost.push(words);
            }
        }
        if lost.is_empty() {
            return Ok(rendered);
        }
        let as_parts = template.render(&variables.with_tokens(tokens()), row).ok().filter(|as_parts| {
            let prints_lists = as_parts.contains("'type': 'text'") || as_parts.contains("\"type\": \"text\"");
            !prints_lists && lost.iter().all(|words| as_parts.contains(words))
        });
        Ok(as_parts.unwrap_or(rendered))
    }

    fn render_turns(
        &self,
        chat: &Chat,
        row: usize,
        protect: impl FnMut(&str) -> String,
    ) -> Result<String, ProcessorError> {
        for (message, parts) in chat.messages.iter().enumerate() {
            let other = parts.parts().iter().find_map(|part| match part {
                Content::Other(keys) => Some(keys.get("type").and_then(Value::as_str).unwrap_or_default()),
                Content::Video { .. } => Some("video"),
                Content::Text { .. } | Content::Image { .. } => None,
            });
            if let Some(kind) = other {
                return Err(ProcessorError::PartType { row, message, kind: shorten(kind) });
            }
        }
        let end = self.end_of_turn.unwrap_or_default();
        Ok(conversation(&chat.messages, chat.add_generation_prompt, self.image_tokens, end, protect))
    }
}

/// Checks that a rendered text has one placeholder per image. `tokens` are given if special tokens in the texts of the
/// messages are parsed.
pub(crate) fn check_images(
    chat: &Chat,
    placeholders: usize,
    tokens: Option<&ImageTokens>,
    row: usize,
) -> Result<(), ProcessorError> {
    let (parts, unfilled) = chat.count_image_parts();
    let separate = chat.images.len();
    if !chat.images_fit() || (parts == 0 && separate > 0 && placeholders != separate) {
        let (images, parts) = (counted(separate, "image"), counted(unfilled, "image part"));
        return Err(ProcessorError::ImageParts { row, images, parts });
    }
    let images = parts.max(separate);
    let n_typed =
        |tokens: &ImageTokens| chat.messages.iter().flat_map(Message::texts).map(|text| tokens.count(text)).sum();
    match (placeholders == images, tokens, tokens.map_or(0, n_typed)) {
        (true, ..) => Ok(()),
        (false, Some(tokens), typed @ 1..) => {
            let typed = counted(typed, &format!("{} placeholder", tokens.image));
            Err(ProcessorError::PlaceholderInText { row, typed })
        }
        _ => Err(ProcessorError::TemplateLossy { row, images, placeholders }),
    }
}

/// Checks that a rendered text has one placeholder per video.
pub(crate) fn check_videos(chat: &Chat, placeholders: usize) -> Result<(), VideoError> {
    let (parts, unfilled) = chat.count_video_parts();
    let separate = chat.videos.len();
    if separate != unfilled && (parts > 0 || placeholders != separate) {
        let (videos, parts) = (counted(separate, "video"), counted(unfilled, "video part"));
        return Err(VideoError::Parts { videos, parts });
    }
    let videos = parts.max(separate);
    match placeholders == videos {
        true => Ok(()),
        false => Err(VideoError::Count { placeholders, videos }),
    }
}

/// Rejects conversations that are empty or exceed `limits`, and roles that are not plain words.
pub(crate) fn check(chat: &Chat, row: usize, limits: &TextLimits) -> Result<(), ProcessorError> {
    let at_most = |what, found, limit| match found > limit {
        true => Err(ProcessorError::TextTooLarge { row, what, found, limit }),
        false => Ok(()),
    };
    at_most("messages", chat.messages.len(), limits.max_messages)?;
    if chat.messages.is_empty() {
        return Err(ProcessorError::EmptyMessages { row });
    }
    let variables = Variables::new(chat);
    if !variables.is_shallow() {
        return at_most("levels of lists and objects", MAX_DEPTH + 1, MAX_DEPTH);
    }
    let lengths = || variables.strings().into_iter().map(|(_, text)| text.len());
    at_most("bytes in one text", lengths().max().unwrap_or(0), limits.max_text_bytes)?;
    at_most("bytes of text in all messages together", lengths().sum(), limits.max_total_bytes)?;
    for (message, entry) in chat.messages.iter().enumerate() {
        // Templates write roles between special tokens, so a role must not contain characters that could imitate such a
        // token.
        if !is_word(&entry.role) {
            return Err(ProcessorError::Role { row, message, role: shorten(&entry.role) });
        }
    }
    Ok(())
}
