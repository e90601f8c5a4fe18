//! The checkpoint's chat template, rendered within limits.

use std::io;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::error::ProcessorError;
use crate::prompt::{Content, Message};

/// Steps that a template may take. The templates of the Idefics family take about ten for each part of a message.
const FUEL: u64 = 1_000_000;
/// How deep calls of macros and blocks may nest.
const RECURSION: usize = 64;
/// Longest rendered text, in bytes.
const MAX_OUTPUT: usize = 8 << 20;

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
/// tokens and nothing else, and their steps, depth and output are limited.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl ChatTemplate {
    /// Parses a template. `path` names the file for messages.
    ///
    /// # Errors
    /// [`ProcessorError::Template`] or [`ProcessorError::TemplateForbidden`].
    pub fn new(source: String, path: &Path) -> Result<Self, ProcessorError> {
        let mut environment = Environment::new();
        // Source: `_cached_compile_jinja_template`.
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().expect("the default delimiters are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| ProcessorError::Template { path: path.to_owned(), error })?;
        Ok(Self { environment, source })
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
        let messages: Vec<Value> = messages.iter().map(|message| message_value(message, &mut protect)).collect();
        let tokens: Value = tokens.iter().filter_map(|(name, token)| Some((*name, Value::from((*token)?)))).collect();
        let fail = |error: Error| match limit(&error) {
            Some(limit) => ProcessorError::TemplateLimit { row, limit },
            None => ProcessorError::Render { row, error },
        };
        let template = self.environment.get_template(NAME).map_err(fail)?;
        let context = context! { messages, add_generation_prompt, tools => (), documents => (), ..tokens };
        let mut output = Capped(Vec::new());
        template.render_captured_to(context, &mut output).map_err(fail)?;
        let not_text = |_| fail(Error::new(ErrorKind::BadSerialization, "the template wrote text that is not UTF-8"));
        String::from_utf8(output.0).map_err(not_text)
    }
}

const NAME: &str = "chat_template";

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

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as the reference writes it: without the escapes that make it safe in HTML.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let _: Option<bool> = options.get("ensure_ascii")?;
    let escaped = minijinja::filters::tojson(value, indent, options)?.to_string();
    let mut json = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(start) = rest.find('\\') {
        let (before, escape) = rest.split_at(start);
        json.push_str(before);
        let html = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        rest = match html.iter().find(|(code, _)| escape.starts_with(code)) {
            Some((code, character)) => {
                json.push(*character);
                &escape[code.len()..]
            }
            None => {
                let end = escape.char_indices().nth(2).map_or(escape.len(), |(end, _)| end);
                json.push_str(&escape[..end]);
                &escape[end..]
            }
        };
    }
    json.push_str(rest);
    Ok(Value::from_safe_string(json))
}

/// Output that refuses to grow past the limit.
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Which limit an error comes from, if any.
fn limit(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Error>() {
            match error.kind() {
                ErrorKind::OutOfFuel => return Some(format!("{FUEL} steps")),
                ErrorKind::InvalidOperation if error.detail() == Some("recursion limit exceeded") => {
                    return Some(format!("{RECURSION} nested calls"));
                }
                _ => {}
            }
        }
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::FileTooLarge) {
            return Some(format!("{MAX_OUTPUT} bytes of text"));
        }
        cause = error.source();
    }
    None
}
