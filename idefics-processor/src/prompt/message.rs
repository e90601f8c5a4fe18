//! Messages of a conversation, and their form for chat templates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::checkpoint::shorten;
use crate::image::ImageSource;
use crate::video::{VideoFrames, VideoSource};

/// Maximum length, in bytes, of a string in an image part. Longer strings, such as data URLs, are shortened for
/// templates.
const MAX_IMAGE_NAME: usize = 4096;

/// One message of a conversation.
///
/// In JSON, an object with `role` and `content`. Other keys (`name`, `tool_calls`, …) are kept in their order and
/// passed to the chat template, except those that are `null`, which Transformers drops too.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The speaker: `user`, `assistant`, `system`, or another role that the template supports.
    pub role: String,
    /// Text and images of the message.
    pub content: MessageContent,
    /// All keys of the JSON object, in order. `role` and `content` are `null` here and only mark their position.
    keys: Map<String, Value>,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum MessageContent {
    /// No content: in JSON, the key is missing or `null`, as in a message that only calls tools.
    #[default]
    Absent,
    /// A plain string, passed to the template as a string.
    Text(String),
    /// Texts and images, in order.
    Parts(Vec<Content>),
}

/// One part of a message's content.
///
/// In JSON, `{"type": "text", "text": "…"}`, or `{"type": "image", …}` with the image under `path`, `url`, `image`,
/// `base64` or `data`, or `{"type": "image_url", "image_url": {"url": "…"}}`. An image part without an image takes the
/// next entry of [`Chat::images`](crate::Chat::images). A video part is `{"type": "video", …}` with the keys of
/// [`VideoSource`]. A video part without a video takes the next entry of [`Chat::videos`](crate::Chat::videos). Parts
/// of other types, and other keys of any part, are only passed to the template.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Content {
    /// A text.
    Text {
        /// The text. Its special tokens are handled as [`SpecialTokensInText`](crate::SpecialTokensInText) says.
        text: String,
        /// All keys of the JSON object, in order. `type` and `text` are `null` here and only mark their position.
        keys: Map<String, Value>,
    },
    /// An image.
    Image {
        /// Source of the image, or `None` for the next entry of [`Chat::images`](crate::Chat::images).
        source: Option<ImageSource>,
        /// All keys, in order, as the template sees them. `type` is `null` here and only marks its position.
        keys: Map<String, Value>,
    },
    /// A video.
    Video {
        /// Source of the video, or `None` for the next entry of [`Chat::videos`](crate::Chat::videos).
        source: Option<VideoSource>,
        /// All keys, in order, as the template sees them. `type` is `null` here and only marks its position.
        keys: Map<String, Value>,
    },
    /// A part of another type: its JSON object. Only the template uses it.
    Other(Map<String, Value>),
}

impl Message {
    /// Creates a message with `role` and `content`.
    pub fn new(role: impl Into<String>, content: impl Into<MessageContent>) -> Self {
        let keys = ["role", "content"].map(|key| (key.to_owned(), Value::Null)).into_iter().collect();
        Self { role: role.into(), content: content.into(), keys }
    }

    /// Creates a message with one text part.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(role, vec![Content::text(text)])
    }

    /// Creates a message with all keys of its JSON object, where `role` and `content` only mark their position.
    pub(crate) fn with_keys(role: String, content: MessageContent, keys: Map<String, Value>) -> Self {
        Self { role, content, keys }
    }

    /// Returns the value of a key other than `role` and `content`.
    pub fn key(&self, name: &str) -> Option<&Value> {
        self.keys.get(name).filter(|value| !value.is_null())
    }

    /// Sets a key for the chat template, such as `name` or `tool_calls`. Does nothing for `role` and `content`.
    pub fn set_key(&mut self, name: impl Into<String>, value: Value) {
        let name = name.into();
        if name != "role" && name != "content" {
            self.keys.insert(name, value);
        }
    }

    /// Returns the parts of the content. There are none if the content is a string or absent.
    pub fn parts(&self) -> &[Content] {
        match &self.content {
            MessageContent::Parts(parts) => parts,
            MessageContent::Absent | MessageContent::Text(_) => &[],
        }
    }

    /// Returns the parts of the content, for changing them in place. There are none if the content is a string or
    /// absent.
    pub fn parts_mut(&mut self) -> &mut [Content] {
        match &mut self.content {
            MessageContent::Parts(parts) => parts,
            MessageContent::Absent | MessageContent::Text(_) => &mut [],
        }
    }

    /// Returns the texts of the content, in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let whole = match &self.content {
            MessageContent::Text(text) => Some(text.as_str()),
            MessageContent::Absent | MessageContent::Parts(_) => None,
        };
        whole.into_iter().chain(self.parts().iter().filter_map(Content::as_text))
    }

    /// Returns the message as JSON that [`Sample`](crate::Sample) can parse, with absolute image paths. Paths that are
    /// not UTF-8 are written with replacement characters.
    pub fn to_json(&self) -> Value {
        self.object(Content::to_json)
    }

    /// Returns the message as chat templates see it.
    ///
    /// A message may have its reasoning under `thinking`, `reasoning_content` or `reasoning`. The template gets it
    /// under the first two keys in any case.
    ///
    /// Source: `_alias_reasoning_fields` in `chat_template_utils.py`.
    pub(crate) fn for_template(&self) -> Value {
        let mut object = self.object(Content::for_template);
        let fields = ["reasoning_content", "thinking", "reasoning"];
        let reasoning = fields.iter().find_map(|name| self.key(name)).cloned();
        if let (Some(reasoning), Value::Object(keys)) = (reasoning, &mut object) {
            let thinking = keys.shift_remove("thinking").unwrap_or_else(|| reasoning.clone());
            keys.shift_insert(0, "thinking".to_owned(), thinking);
            keys.insert("reasoning_content".to_owned(), reasoning);
        }
        object
    }

    /// Builds the JSON object of the message. `part` converts each part of the content.
    fn object(&self, part: impl Fn(&Content) -> Value) -> Value {
        let content = match &self.content {
            MessageContent::Absent => None,
            MessageContent::Text(text) => Some(Value::from(text.as_str())),
            MessageContent::Parts(parts) => Some(parts.iter().map(part).collect()),
        };
        let typed = [("role", Some(Value::from(self.role.as_str()))), ("content", content)];
        let mut object = in_place(&self.keys, typed);
        object.retain(|_, value| !value.is_null());
        Value::Object(object)
    }
}

impl From<Vec<Content>> for MessageContent {
    fn from(parts: Vec<Content>) -> Self {
        Self::Parts(parts)
    }
}

impl From<String> for MessageContent {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for MessageContent {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Content {
    /// Creates a text part.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into(), keys: markers(["type", "text"]) }
    }

    /// Creates an image part.
    pub fn image(source: impl Into<ImageSource>) -> Self {
        Self::Image { source: Some(source.into()), keys: markers(["type"]) }
    }

    /// Creates an image part without an image of its own. It takes the next entry of
    /// [`Chat::images`](crate::Chat::images).
    pub fn next_image() -> Self {
        Self::Image { source: None, keys: markers(["type"]) }
    }

    /// Creates a video part.
    pub fn video(source: impl Into<VideoSource>) -> Self {
        Self::Video { source: Some(source.into()), keys: markers(["type"]) }
    }

    /// Returns the text of a text part, or `None` for other parts.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text { text, .. } => Some(text),
            Self::Image { .. } | Self::Video { .. } | Self::Other(_) => None,
        }
    }

    /// Returns whether this is an image part.
    pub fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }

    /// Returns whether this is a video part.
    pub fn is_video(&self) -> bool {
        matches!(self, Self::Video { .. })
    }

    /// Returns the part as chat templates see it: all keys as given, with long image strings shortened.
    fn for_template(&self) -> Value {
        match self {
            Self::Text { text, keys } => {
                let typed = [("type", Some("text".into())), ("text", Some(text.as_str().into()))];
                Value::Object(in_place(keys, typed))
            }
            Self::Image { keys, .. } => Value::Object(in_place(keys, [("type", Some("image".into()))])),
            Self::Video { keys, .. } => Value::Object(in_place(keys, [("type", Some("video".into()))])),
            Self::Other(keys) => Value::Object(keys.clone()),
        }
    }

    fn to_json(&self) -> Value {
        if let Self::Video { source: Some(video), .. } = self {
            return video_json(video);
        }
        let Self::Image { source: Some(source), .. } = self else { return self.for_template() };
        if let Some(path) = source.file() {
            let path = std::path::absolute(&path).unwrap_or_else(|_| path.into_owned());
            return json!({"type": "image", "path": path.to_string_lossy()});
        }
        match source {
            ImageSource::Bytes(bytes) => json!({"type": "image", "base64": BASE64.encode(bytes)}),
            ImageSource::DataUrl(url) => json!({"type": "image", "url": url}),
            ImageSource::Base64 { text, .. } => json!({"type": "image", "image": text}),
            other => json!({"type": "image", "url": other.to_string()}),
        }
    }
}

/// Returns a video part as JSON, with absolute paths.
fn video_json(video: &VideoSource) -> Value {
    let name = |source: &ImageSource| match source.file() {
        Some(path) => {
            let path = std::path::absolute(&path).unwrap_or_else(|_| path.into_owned());
            Value::from(path.to_string_lossy())
        }
        None => match source {
            ImageSource::Bytes(bytes) => {
                format!("data:application/octet-stream;base64,{}", BASE64.encode(bytes)).into()
            }
            ImageSource::DataUrl(url) => url.as_str().into(),
            other => other.to_string().into(),
        },
    };
    let (key, frames) = match &video.frames {
        VideoFrames::Pictures(pictures) => ("frames", pictures.iter().map(name).collect()),
        VideoFrames::File(file) => ("path", name(file)),
    };
    let mut part = json!({"type": "video", key: frames});
    let numbers = [
        ("fps", video.fps.map(Value::from)),
        ("total_num_frames", video.total_num_frames.map(Value::from)),
        ("duration", video.duration.map(Value::from)),
        ("frames_indices", video.frames_indices.clone().map(Value::from)),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            part[key] = value;
        }
    }
    part
}

/// Returns a map with `null` for each key. The null values only mark the positions of the keys.
fn markers<const N: usize>(keys: [&str; N]) -> Map<String, Value> {
    keys.into_iter().map(|key| (key.to_owned(), Value::Null)).collect()
}

/// Inserts the `typed` values into a copy of `keys`: each at the position of its key, or at the end if `keys` lacks the
/// key. A key with the value `None` is removed.
fn in_place<const N: usize>(keys: &Map<String, Value>, typed: [(&str, Option<Value>); N]) -> Map<String, Value> {
    let mut object = keys.clone();
    for (key, value) in typed {
        match value {
            Some(value) => object.insert(key.to_owned(), value),
            None => object.shift_remove(key),
        };
    }
    object
}

/// Shortens long strings in the keys of an image part, such as data URLs, for templates.
pub(crate) fn with_short_names(mut keys: Map<String, Value>) -> Map<String, Value> {
    for value in keys.values_mut() {
        if value.as_str().is_some_and(|text| text.len() > MAX_IMAGE_NAME) {
            *value = shorten(value.as_str().unwrap_or_default()).into();
        }
    }
    keys
}
