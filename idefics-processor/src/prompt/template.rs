//! The checkpoint's chat template.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::{Value, context};

use crate::error::ProcessorError;
use crate::prompt::sandbox::{self, Cost, Forbidden};
use crate::prompt::{Content, Message};

/// How much text a sample may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// Longest text of a sample or of one part of a message, in bytes.
    pub max_text_bytes: usize,
    /// Longest text of all messages together, in bytes.
    pub max_total_bytes: usize,
    /// Most messages of a conversation.
    pub max_messages: usize,
    /// Most images of a sample.
    pub max_images: usize,
}

/// 1 MiB for one text, 4 MiB for a conversation of at most 1024 messages, and 256 images: beyond any context window.
impl Default for TextLimits {
    fn default() -> Self {
        Self { max_text_bytes: 1 << 20, max_total_bytes: 4 << 20, max_messages: 1024, max_images: 256 }
    }
}

/// A chat template of a checkpoint: what turns messages into text.
///
/// Templates are programs from a downloaded folder, so they run in a sandbox: they see the messages and the special
/// tokens and nothing else, they read no other template, and their steps, depth and sizes are limited. `strftime_now`
/// gives the time in UTC.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Parses a template. `path` names the file for messages.
    ///
    /// # Errors
    /// [`ProcessorError::Template`] or [`ProcessorError::TemplateForbidden`].
    pub fn new(source: String, path: &Path) -> Result<Self, ProcessorError> {
        match sandbox::check(&source) {
            Ok(None) => Ok(Self { source }),
            Ok(Some(Forbidden { what, line })) => {
                Err(ProcessorError::TemplateForbidden { path: path.to_owned(), what, line })
            }
            Err(error) => Err(ProcessorError::Template { path: path.to_owned(), error }),
        }
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation. `tokens` are the names and spellings of special tokens that the template may write;
    /// every text of the messages goes through `protect` first.
    ///
    /// # Errors
    /// [`ProcessorError::Render`] or [`ProcessorError::TemplateLimit`], with `row` in them.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tokens: &[(&str, Option<&str>)],
        row: usize,
        mut protect: impl FnMut(&str) -> String,
    ) -> Result<String, ProcessorError> {
        let contents = || messages.iter().flat_map(|message| &message.content);
        let bytes = contents().map(|content| match content {
            Content::Text { text } => text.len(),
            Content::Image { .. } => 0,
        });
        let cost = Cost::of(messages.len() + contents().count(), bytes.sum());

        let messages: Vec<Value> = messages.iter().map(|message| message_value(message, &mut protect)).collect();
        let tokens: BTreeMap<&str, Value> =
            tokens.iter().filter_map(|(name, token)| Some((*name, Value::from((*token)?)))).collect();
        let context = context! { messages, add_generation_prompt, tools => (), documents => (), ..Value::from(tokens) };
        sandbox::render(&self.source, context, cost).map_err(|error| match sandbox::limit(&error) {
            Some(limit) => ProcessorError::TemplateLimit { row, limit },
            None => ProcessorError::Render { row, error },
        })
    }
}

/// What a template sees of a message. Images are there, but not what they show or where they lie.
fn message_value(message: &Message, protect: &mut impl FnMut(&str) -> String) -> Value {
    let content: Vec<Value> = message
        .content
        .iter()
        .map(|content| match content {
            Content::Text { text } => context! { type => "text", text => protect(text) },
            Content::Image { .. } => context! { type => "image" },
        })
        .collect();
    context! { role => message.role.as_str(), content }
}
