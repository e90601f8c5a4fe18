//! Parses samples from JSON. Errors name the field that is wrong.

use serde_json::{Map, Value};

use crate::checkpoint::shorten;
use crate::files::without_byte_order_mark;
use crate::image::{ImageError, ImageSource};
use crate::prompt::json_video::{video_list, video_part};
use crate::prompt::message::with_short_names;
use crate::prompt::{Chat, Content, Message, MessageContent, PromptPart, Sample};

/// An error from parsing a [`Sample`] from JSON.
#[derive(Debug, thiserror::Error)]
#[error("{}{problem}", place(at))]
#[non_exhaustive]
pub struct SampleError {
    /// Path of the invalid field, such as `messages[0].content[1]`; empty for the sample itself.
    pub at: String,
    /// What is wrong with the field.
    #[source]
    pub problem: SampleProblem,
}

/// What is wrong with a field of a sample.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleProblem {
    /// The text is not JSON.
    #[error("is not JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// A value has the wrong type.
    #[error("is {found}; expected {expected}")]
    Kind {
        /// The value, shortened.
        found: String,
        /// The values that are accepted.
        expected: &'static str,
    },
    /// An object lacks a required key.
    #[error("has no `{key}`; expected {expected}")]
    Missing {
        /// The missing key.
        key: &'static str,
        /// The values that the key accepts.
        expected: &'static str,
    },
    /// The sample has none of the keys that select its form, or more than one.
    #[error("needs exactly one of `text`, `messages` and `prompt`, but has {found}")]
    Form {
        /// The keys in the sample, or `none of them` with a suggestion.
        found: String,
    },
    /// A key is not allowed in this form of sample.
    #[error("has `{key}` together with `{form}`, where it is not allowed; {remedy}")]
    Foreign {
        /// The key that is not allowed.
        key: &'static str,
        /// The key that selects the form of the sample.
        form: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A part has an unsupported type, such as audio.
    #[error("is of type `{kind}`, which is not supported; use `text`, `image` or `video`")]
    Media {
        /// Type of the part.
        kind: String,
    },
    /// A part names more than one video.
    #[error("names more than one video ({keys}); use one part per video")]
    SeveralVideos {
        /// The keys that name videos, in backticks.
        keys: String,
    },
    /// A part names more than one image.
    #[error("names more than one image ({keys}); use one part per image")]
    SeveralImages {
        /// The keys that name images, in backticks.
        keys: String,
    },
    /// The number of entries in `images` differs from the number of image parts that have no image of their own.
    #[error(
        "has {images} in `images`, but {parts} in `messages` without an image; give one image per part, \
         and one part per image"
    )]
    ImageParts {
        /// Number of entries in `images`, with its noun: `2 images`.
        images: String,
        /// Number of image parts without an image of their own, with its noun: `1 image part`.
        parts: String,
    },
    /// A template variable has the name of a key of the sample.
    #[error("sets `{name}`, which is a key of the sample itself; set it next to `messages`")]
    ReservedVariable {
        /// Name of the variable.
        name: String,
    },
    /// A string is not a valid image source.
    #[error("does not name an image: {0}")]
    Image(#[source] ImageError),
}

pub(super) type Parsed<T> = Result<T, SampleError>;

impl SampleError {
    pub(super) fn new(problem: SampleProblem) -> Self {
        Self { at: String::new(), problem }
    }

    /// Prepends `key` to the path of the field.
    pub(super) fn under(mut self, key: &str) -> Self {
        let dot = if self.at.is_empty() || self.at.starts_with('[') { "" } else { "." };
        self.at = format!("{key}{dot}{}", self.at);
        self
    }

    /// Prepends `[index]` to the path of the field.
    pub(super) fn at_index(self, index: usize) -> Self {
        self.under(&format!("[{index}]"))
    }
}

fn place(at: &str) -> String {
    match at {
        "" => "the sample ".to_owned(),
        at => format!("`{at}` "),
    }
}

/// The keys of a sample.
const KEYS: [&str; 9] = [
    "text",
    "messages",
    "prompt",
    "images",
    "videos",
    "add_generation_prompt",
    "tools",
    "documents",
    "chat_template_kwargs",
];

impl Sample {
    /// Parses a sample from the text of a JSON file. A UTF-8 byte order mark at its start is skipped.
    ///
    /// # Errors
    /// A [`SampleError`] that names the invalid field.
    pub fn from_json(text: &[u8]) -> Result<Self, SampleError> {
        let text = without_byte_order_mark(text);
        let value: Value =
            serde_json::from_slice(text).map_err(|error| SampleError::new(SampleProblem::Syntax(error)))?;
        Self::try_from(value)
    }

    /// Returns the key of samples that differs from `key` only by case or by an `s` at its end, such as `images` for
    /// `image`. Returns `None` if there is no such key, or if `key` is itself a key of samples.
    pub fn similar_key(key: &str) -> Option<&'static str> {
        let key_of = |text: &str| text.strip_suffix('s').unwrap_or(text).to_ascii_lowercase();
        let is_key = KEYS.contains(&key);
        KEYS.into_iter().find(|known| !is_key && key_of(known) == key_of(key))
    }

    /// Takes a sample out of a JSON object: removes the keys of the sample and leaves all other keys.
    ///
    /// # Errors
    /// A [`SampleError`] that names the invalid field. Keys may already have been removed from the object.
    pub fn take_from(object: &mut Map<String, Value>) -> Result<Self, SampleError> {
        let forms: Vec<&str> = ["text", "messages", "prompt"]
            .into_iter()
            .filter(|form| object.get(*form).is_some_and(|value| !value.is_null()))
            .collect();
        for form in ["text", "messages", "prompt"] {
            if !forms.contains(&form) {
                object.shift_remove(form); // absent or null
            }
        }
        let &[form] = forms.as_slice() else {
            let found = match forms.as_slice() {
                [] => {
                    let similar = object.keys().find_map(|key| Some((Self::similar_key(key)?, key)));
                    let hint = similar.map(|(meant, key)| format!("; write `{meant}` for `{}`", shorten(key)));
                    format!("none of them{}", hint.unwrap_or_default())
                }
                several => several.join(" and "),
            };
            return Err(SampleError::new(SampleProblem::Form { found }));
        };
        let mut take = |key: &str| object.shift_remove(key).filter(|value| !value.is_null());
        let foreign = |key, form, remedy| Err(SampleError::new(SampleProblem::Foreign { key, form, remedy }));
        let value = take(form).unwrap_or_default();
        let (images, add_generation_prompt) = (take("images"), take("add_generation_prompt"));
        let videos = take("videos");
        let video_sources =
            |videos: Option<Value>| videos.map_or(Ok(Vec::new()), video_list).map_err(|error| error.under("videos"));
        match form {
            "text" => {
                if add_generation_prompt.is_some() {
                    return foreign("add_generation_prompt", "text", "use it only with `messages`");
                }
                let text = string(value, "a string").map_err(|error| error.under("text"))?;
                let images = images.map_or(Ok(Vec::new()), image_list).map_err(|error| error.under("images"))?;
                Ok(Self::Text { text, images, videos: video_sources(videos)? })
            }
            "prompt" => {
                if images.is_some() {
                    return foreign("images", "prompt", "put the images into the list");
                }
                if videos.is_some() {
                    return foreign("videos", "prompt", "use `text` or `messages` for videos");
                }
                if add_generation_prompt.is_some() {
                    return foreign("add_generation_prompt", "prompt", "use it only with `messages`");
                }
                let parts = parse_list(value, "a list of texts and images", prompt_part);
                Ok(Self::Prompt(parts.map_err(|error| error.under("prompt"))?))
            }
            _ => {
                let messages =
                    parse_list(value, "a list of messages", message).map_err(|error| error.under("messages"))?;
                let mut chat = Chat::new(messages);
                chat.images = images.map_or(Ok(Vec::new()), image_list).map_err(|error| error.under("images"))?;
                chat.videos = video_sources(videos)?;
                if let Some(value) = add_generation_prompt {
                    let expected = "true or false";
                    chat.add_generation_prompt =
                        value.as_bool().ok_or_else(|| kind(&value, expected).under("add_generation_prompt"))?;
                }
                let objects = |key: &'static str, value: Option<Value>| {
                    value
                        .map(|value| {
                            parse_list(value, "a list of objects", |item| parse_object(item).map(Value::Object))
                        })
                        .transpose()
                        .map_err(|error| error.under(key))
                };
                chat.tools = objects("tools", take("tools"))?;
                chat.documents = objects("documents", take("documents"))?;
                let key = "chat_template_kwargs";
                chat.template_variables =
                    take(key).map_or(Ok(Map::new()), template_variables).map_err(|error| error.under(key))?;
                if !chat.images_fit() {
                    let (images, (_, parts)) = (chat.images.len(), chat.count_image_parts());
                    let parts = counted(parts, "image part");
                    let problem = SampleProblem::ImageParts { images: counted(images, "image"), parts };
                    return Err(SampleError::new(problem));
                }
                Ok(chat.into())
            }
        }
    }
}

impl TryFrom<Value> for Sample {
    type Error = SampleError;

    fn try_from(value: Value) -> Result<Self, SampleError> {
        match value {
            Value::Object(mut object) => Self::take_from(&mut object),
            other => Err(kind(&other, "an object with `text`, `messages` or `prompt`")),
        }
    }
}

/// Formats a count with its noun, such as `2 images`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Template variables that are set by keys of the sample.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

fn template_variables(value: Value) -> Parsed<Map<String, Value>> {
    let variables = parse_object(value)?;
    match RESERVED.iter().find(|name| variables.contains_key(**name)) {
        Some(name) => Err(SampleError::new(SampleProblem::ReservedVariable { name: (*name).to_owned() })),
        None => Ok(variables),
    }
}

fn message(value: Value) -> Parsed<Message> {
    let Value::Object(mut keys) = value else { return Err(kind(&value, "an object with `role` and `content`")) };
    // Transformers drops keys that are null. From here on, a null value only marks the position of a key whose value is
    // stored in a typed field.
    keys.retain(|_, value| !value.is_null());
    let role = take_value(&mut keys, "role").ok_or_else(|| {
        SampleError::new(SampleProblem::Missing { key: "role", expected: "a role, such as `user` or `assistant`" })
    })?;
    let role = string(role, "a string").map_err(|error| error.under("role"))?;
    let content = match take_value(&mut keys, "content") {
        None => MessageContent::Absent,
        Some(Value::String(text)) => MessageContent::Text(text),
        Some(value) => parse_list(value, "a string or a list of parts", part)
            .map(MessageContent::Parts)
            .map_err(|error| error.under("content"))?,
    };
    Ok(Message::with_keys(role, content, keys))
}

/// Takes the value of a key and leaves `null` in its place, which keeps the order of the keys.
pub(super) fn take_value(keys: &mut Map<String, Value>, key: &str) -> Option<Value> {
    keys.get_mut(key).map(Value::take)
}

/// Keys of an image part that may name its image.
const IMAGE_KEYS: [&str; 6] = ["image", "url", "path", "base64", "data", "image_url"];

fn part(value: Value) -> Parsed<Content> {
    let expected = "an object such as {\"type\": \"text\", \"text\": \"…\"}";
    let Value::Object(mut keys) = value else { return Err(kind(&value, expected)) };
    match keys.get("type") {
        None | Some(Value::Null) => {
            Err(SampleError::new(SampleProblem::Missing { key: "type", expected: "a type, such as `text` or `image`" }))
        }
        Some(Value::String(name)) => match name.as_str() {
            "text" => {
                take_value(&mut keys, "type");
                let text = take_value(&mut keys, "text").filter(|text| !text.is_null());
                let missing = SampleProblem::Missing { key: "text", expected: "the text of the part" };
                let text = text.ok_or_else(|| SampleError::new(missing))?;
                Ok(Content::Text { text: string(text, "a string").map_err(|error| error.under("text"))?, keys })
            }
            "image" | "image_url" => image_part(keys),
            "video" | "video_url" => video_part(keys),
            "audio" | "audio_url" | "input_audio" => Err(SampleError::new(SampleProblem::Media { kind: name.clone() })),
            _ => Ok(Content::Other(keys)),
        },
        Some(other) => Err(kind(other, "a string").under("type")),
    }
}

fn image_part(mut keys: Map<String, Value>) -> Parsed<Content> {
    let is_url = take_value(&mut keys, "type").is_some_and(|name| name == "image_url");
    let given: Vec<&str> =
        IMAGE_KEYS.into_iter().filter(|key| keys.get(*key).is_some_and(|value| !value.is_null())).collect();
    let source = match given.as_slice() {
        [] if is_url => {
            let problem = SampleProblem::Missing { key: "image_url", expected: "an object with `url`, or a string" };
            return Err(SampleError::new(problem));
        }
        [] => None,
        &[key] => Some(image_under(key, &keys[key])?),
        several => {
            let keys = several.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            return Err(SampleError::new(SampleProblem::SeveralImages { keys }));
        }
    };
    // Source: `_normalize_conversations` in `processing_utils.py`.
    if let Some(url) = keys.get("image_url").filter(|_| is_url) {
        let url = url.get("url").unwrap_or(url).clone();
        keys = [("type".to_owned(), Value::Null), ("url".to_owned(), url)].into_iter().collect();
    }
    Ok(Content::Image { source, keys: with_short_names(keys) })
}

/// Parses the image under `key` of an image part.
fn image_under(key: &str, value: &Value) -> Parsed<ImageSource> {
    let source = match (key, value) {
        ("image_url", Value::Object(object)) => match object.get("url") {
            Some(url) => image(url, "a string").map_err(|error| error.under("url")),
            None => Err(SampleError::new(SampleProblem::Missing { key: "url", expected: "a string" })),
        },
        ("image_url", value) => image(value, "an object with `url`, or a string"),
        ("base64" | "data", Value::String(data)) if !data.starts_with("data:") => {
            Ok(ImageSource::DataUrl(format!("data:application/octet-stream;base64,{data}")))
        }
        (_, value) => image(value, "a path, a URL or a data URL"),
    };
    source.map_err(|error| error.under(key))
}

fn image_list(value: Value) -> Parsed<Vec<ImageSource>> {
    parse_list(value, "a list of images", |item| image(&item, "a path, a URL or a data URL"))
}

fn prompt_part(value: Value) -> Parsed<PromptPart> {
    match value {
        Value::String(text) => {
            let trimmed = text.trim_matches(' ');
            let is_url = ["http://", "https://"].iter().any(|scheme| trimmed.starts_with(scheme));
            match is_url && !trimmed.contains(' ') {
                true => Ok(PromptPart::Image(source(trimmed)?)),
                false => Ok(PromptPart::Text(text)),
            }
        }
        Value::Object(object) => match object.get("image") {
            Some(value) => {
                let image = image(value, "a path, a URL or a data URL").map_err(|error| error.under("image"))?;
                Ok(PromptPart::Image(image))
            }
            None => {
                let expected = "an image, as in {\"image\": \"photo.jpg\"}";
                Err(SampleError::new(SampleProblem::Missing { key: "image", expected }))
            }
        },
        other => Err(kind(&other, "a string, or an object with `image`")),
    }
}

pub(super) fn image(value: &Value, expected: &'static str) -> Parsed<ImageSource> {
    match value {
        Value::String(name) => source(name),
        other => Err(kind(other, expected)),
    }
}

pub(super) fn source(name: &str) -> Parsed<ImageSource> {
    name.parse().map_err(|error| SampleError::new(SampleProblem::Image(error)))
}

fn string(value: Value, expected: &'static str) -> Parsed<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(kind(&other, expected)),
    }
}

fn parse_object(value: Value) -> Parsed<Map<String, Value>> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(kind(&other, "an object")),
    }
}

/// Parses each item of a list with `item`.
pub(super) fn parse_list<T>(value: Value, expected: &'static str, item: impl Fn(Value) -> Parsed<T>) -> Parsed<Vec<T>> {
    let Value::Array(items) = value else { return Err(kind(&value, expected)) };
    let items = items.into_iter().enumerate();
    items.map(|(index, value)| item(value).map_err(|error| error.at_index(index))).collect()
}

pub(super) fn kind(value: &Value, expected: &'static str) -> SampleError {
    SampleError::new(SampleProblem::Kind { found: found(value), expected })
}

/// Describes a value for an error message.
fn found(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string {:?}", shorten(text)),
        Value::Array(items) => format!("a list of {}", counted(items.len(), "item")),
        Value::Object(object) => match object.keys().next() {
            None => "an empty object".to_owned(),
            Some(key) => format!("an object with {:?}", shorten(key)),
        },
    }
}
