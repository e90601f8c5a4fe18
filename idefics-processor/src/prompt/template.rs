//! The checkpoint's chat template.

use std::path::Path;

use idefics_template::{ErrorKind, Limits, Now, Template};
use serde_json::{Map, Value};

use crate::error::ProcessorError;

/// Limits on the text, messages and images of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// Maximum length of one text (the text of a sample, or one string in a conversation), in bytes.
    pub max_text_bytes: usize,
    /// Maximum length of all texts of a conversation or prompt list together, in bytes.
    pub max_total_bytes: usize,
    /// Maximum number of messages in a conversation.
    pub max_messages: usize,
    /// Maximum number of images in a sample. The same limit applies to videos.
    pub max_images: usize,
}

/// 1 MiB for one text, 4 MiB and 1024 messages for a conversation, and 256 images.
impl Default for TextLimits {
    fn default() -> Self {
        Self { max_text_bytes: 1 << 20, max_total_bytes: 4 << 20, max_messages: 1024, max_images: 256 }
    }
}

/// The chat template of a checkpoint, which renders messages to text.
///
/// Templates are programs from a downloaded folder, so they run in a sandbox: they only see the messages and the
/// special tokens, they cannot load other templates, and their steps, nesting depth and sizes are limited.
/// `strftime_now` returns the time in UTC.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    template: Template,
}

impl ChatTemplate {
    /// Parses a template. `path` is the file named in error messages.
    ///
    /// # Errors
    /// [`ProcessorError::Template`] if the template has a syntax error.
    pub fn new(source: String, path: &Path) -> Result<Self, ProcessorError> {
        match Template::parse(&source) {
            Ok(template) => Ok(Self { source, template }),
            Err(error) => Err(ProcessorError::Template { path: path.to_owned(), error }),
        }
    }

    /// Returns the source code of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the template with `variables`.
    ///
    /// # Errors
    /// [`ProcessorError::Render`] or [`ProcessorError::TemplateLimit`] for row `row`.
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

/// Returns the number of values inside `value`, counting lists and objects too, and the total length of all strings and
/// keys in bytes.
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
