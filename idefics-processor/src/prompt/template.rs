//! The checkpoint's chat template.

use std::path::Path;

use idefics_template::{ErrorKind, Limits, Now, Template};
use serde_json::{Map, Value};

use crate::error::ProcessorError;

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
    template: Template,
}

impl ChatTemplate {
    /// Parses a template. `path` names the file for messages.
    ///
    /// # Errors
    /// [`ProcessorError::Template`].
    pub fn new(source: String, path: &Path) -> Result<Self, ProcessorError> {
        match Template::parse(&source) {
            Ok(template) => Ok(Self { source, template }),
            Err(error) => Err(ProcessorError::Template { path: path.to_owned(), error }),
        }
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text that the template makes of `variables`.
    ///
    /// # Errors
    /// [`ProcessorError::Render`] or [`ProcessorError::TemplateLimit`], with `row` in them.
    pub(crate) fn render(&self, variables: &Map<String, Value>, row: usize) -> Result<String, ProcessorError> {
        let sizes = variables.values().map(size);
        let (nodes, bytes) = sizes.fold((0, 0), |(nodes, bytes), more| (nodes + more.0, bytes + more.1));
        let limits = Limits::for_conversation(nodes, bytes);
        match self.template.render(variables, limits, Now::utc()) {
            Ok(rendered) => Ok(rendered.text),
            Err(error) if error.kind() == ErrorKind::Limit => {
                Err(ProcessorError::TemplateLimit { row, limit: error.message().to_owned() })
            }
            Err(error) => Err(ProcessorError::Render { row, error }),
        }
    }
}

/// How many values there are, lists and objects included, and the bytes of all strings.
fn size(value: &Value) -> (usize, usize) {
    let sum = |(nodes, bytes): (usize, usize), value| {
        let (more_nodes, more_bytes) = size(value);
        (nodes + more_nodes, bytes + more_bytes)
    };
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => (1, 0),
        Value::String(text) => (1, text.len()),
        Value::Array(items) => items.iter().fold((1, 0), sum),
        Value::Object(object) => {
            let (nodes, bytes) = object.values().fold((1, 0), sum);
            (nodes, bytes + object.keys().map(String::len).sum::<usize>())
        }
    }
}
