//! The variables that Transformers passes to chat templates, as JSON.

use serde_json::{Map, Value};

use crate::prompt::{Chat, Message, find_token};

/// Maximum nesting depth of lists and objects in template variables, the same as in the JSON parser.
pub(crate) const MAX_DEPTH: usize = 128;

/// The template variables of a conversation, without the special tokens.
///
/// Source: `render_jinja_template` in `chat_template_utils.py` for the names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variables(Map<String, Value>);

impl Variables {
    pub(crate) fn new(chat: &Chat) -> Self {
        let list = |items: &Option<Vec<Value>>| items.clone().map_or(Value::Null, Value::Array);
        let mut variables: Map<String, Value> = [
            ("messages".to_owned(), chat.messages.iter().map(Message::for_template).collect()),
            ("tools".to_owned(), list(&chat.tools)),
            ("documents".to_owned(), list(&chat.documents)),
            ("add_generation_prompt".to_owned(), chat.add_generation_prompt.into()),
        ]
        .into_iter()
        .collect();
        for (name, value) in &chat.template_variables {
            variables.entry(name.as_str()).or_insert_with(|| value.clone());
        }
        Self(variables)
    }

    /// Returns every string that may come from a user, including keys of objects, with the name of its variable. Values
    /// nested deeper than [`MAX_DEPTH`] are skipped.
    pub(crate) fn strings(&self) -> Vec<(&str, &str)> {
        let mut strings = Vec::new();
        for (name, value) in &self.0 {
            visit(value, MAX_DEPTH, &mut |text| strings.push((name.as_str(), text)));
        }
        strings
    }

    /// Returns whether lists and objects are nested at most [`MAX_DEPTH`] deep.
    pub(crate) fn is_shallow(&self) -> bool {
        self.0.values().all(|value| visit(value, MAX_DEPTH, &mut |_| ()))
    }

    /// Replaces every string that [`Self::strings`] returns. Keys, roles and types that are plain words without a
    /// special token stay unchanged, because templates compare them.
    pub(crate) fn map_strings(self, tokens: &[&str], replace: &mut impl FnMut(&str) -> String) -> Self {
        let replaced = self.0.into_iter().map(|(name, value)| (name, map_value(value, tokens, replace)));
        Self(replaced.collect())
    }

    /// Returns the same variables with the texts of each message joined to one string, with a line break between them.
    /// Returns `None` if a message has a part that is not a text, or if no message has parts.
    pub(crate) fn with_strings(&self) -> Option<Self> {
        let mut variables = self.clone();
        let mut has_parts = false;
        for content in variables.messages_mut().iter_mut().filter_map(|message| message.get_mut("content")) {
            let Some(parts) = content.as_array() else { continue };
            let text = |part: &Value| {
                part.get("type").filter(|kind| *kind == "text").and(part.get("text")?.as_str().map(str::to_owned))
            };
            let texts: Vec<String> = parts.iter().map(text).collect::<Option<_>>()?;
            *content = texts.join("\n").into();
            has_parts = true;
        }
        has_parts.then_some(variables)
    }

    /// Returns the messages, for changing them in place.
    pub(crate) fn messages_mut(&mut self) -> &mut [Value] {
        match self.0.get_mut("messages") {
            Some(Value::Array(messages)) => messages,
            _ => &mut [],
        }
    }

    /// Returns all variables, including the special tokens. `tokens` are the names and texts of the special tokens. A
    /// variable of the same name overrides a special token.
    pub(crate) fn with_tokens<'t>(&self, tokens: impl IntoIterator<Item = (&'t str, &'t str)>) -> Map<String, Value> {
        let mut variables: Map<String, Value> =
            tokens.into_iter().map(|(name, token)| (name.to_owned(), token.into())).collect();
        variables.extend(self.0.clone());
        variables
    }
}

/// Calls `each` with every string. Returns `false` if values were skipped because they are nested deeper than `depth`.
fn visit<'v>(value: &'v Value, depth: usize, each: &mut impl FnMut(&'v str)) -> bool {
    match (value, depth.checked_sub(1)) {
        (Value::String(text), _) => {
            each(text);
            true
        }
        (Value::Null | Value::Bool(_) | Value::Number(_), _) => true,
        (Value::Array(_) | Value::Object(_), None) => false,
        (Value::Array(items), Some(depth)) => {
            // `all` would stop at the first item that is nested too deep, but the items after it must be visited too.
            let cut = items.iter().filter(|item| !visit(item, depth, each)).count();
            cut == 0
        }
        (Value::Object(object), Some(depth)) => object.iter().fold(true, |whole, (key, item)| {
            each(key);
            visit(item, depth, each) && whole
        }),
    }
}

fn map_value(value: Value, tokens: &[&str], replace: &mut impl FnMut(&str) -> String) -> Value {
    let is_plain = |text: &str| is_word(text) && find_token(text, tokens).is_none();
    match value {
        Value::String(text) => Value::String(replace(&text)),
        Value::Array(items) => items.into_iter().map(|item| map_value(item, tokens, replace)).collect(),
        Value::Object(object) => {
            let entries = object.into_iter().map(|(key, item)| {
                let is_name = matches!(key.as_str(), "role" | "type") && item.as_str().is_some_and(is_plain);
                let item = if is_name { item } else { map_value(item, tokens, replace) };
                (if is_plain(&key) { key } else { replace(&key) }, item)
            });
            Value::Object(entries.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// Returns whether `text` is a plain word: 1 to 64 characters, which may be letters and digits of any script, `-`, `_`
/// and `.`.
///
/// Templates look up keys by name and compare roles, so plain words must reach them unchanged.
pub(crate) fn is_word(text: &str) -> bool {
    let is_letter = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_' | '.');
    !text.is_empty() && text.chars().count() <= 64 && text.chars().all(is_letter)
}
