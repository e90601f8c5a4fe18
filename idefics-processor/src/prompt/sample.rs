//! What a caller asks for: one row of a batch, as the project's JSON has it.

use std::path::Path;

use serde::Deserialize;

use crate::image::ImageSource;

/// One row of a batch.
///
/// In JSON, its keys tell the three forms apart:
/// ```json
/// {"text": "User:<image>What is this?<end_of_utterance>\nAssistant:", "images": ["cat.png"]}
/// {"messages": [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]}],
///  "add_generation_prompt": true}
/// {"prompt": ["User:", {"image": "cat.png"}, "Describe this.\nAssistant:"]}
/// ```
/// An image is a path, an `http(s)` URL or a `data:` URL. A key that no form has is an error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawSample")]
pub enum Sample {
    /// Text in which every special token counts, with one `<image>` for each image.
    Text {
        /// The text.
        text: String,
        /// The images, in the order of their placeholders.
        images: Vec<ImageSource>,
    },
    /// A conversation that the checkpoint's chat template turns into text.
    Messages {
        /// The messages, oldest first.
        messages: Vec<Message>,
        /// Whether the text ends where the assistant's answer begins. False where JSON does not say, as in the
        /// reference.
        add_generation_prompt: bool,
    },
    /// The interleaved list of the first Idefics.
    Prompt(Vec<PromptPart>),
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Message {
    /// Who speaks: `user`, `assistant`, `system`, or what else the template knows.
    pub role: String,
    /// What is said and shown, in order. In JSON, a plain string is one text.
    #[serde(deserialize_with = "content_or_text")]
    pub content: Vec<Content>,
}

/// A piece of a message.
///
/// In JSON `{"type": "text", "text": "…"}` or `{"type": "image", …}` with the image under `path`, `url`, `image`,
/// `base64` or `data`; `{"type": "image_url", "image_url": {"url": "…"}}` is read too.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawContent")]
pub enum Content {
    /// Words.
    Text {
        /// The words, never read as special tokens unless asked for.
        text: String,
    },
    /// A picture.
    Image {
        /// Where it is.
        source: ImageSource,
    },
}

/// A piece of an interleaved prompt.
///
/// In JSON a string is text, unless it is an `http(s)` URL without a space, and `{"image": "…"}` an image.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawPromptPart")]
pub enum PromptPart {
    /// Words.
    Text(String),
    /// A picture.
    Image(ImageSource),
}

impl Sample {
    /// The images of this row, in the order in which the text shows them.
    pub fn images(&self) -> Vec<&ImageSource> {
        match self {
            Self::Text { images, .. } => images.iter().collect(),
            Self::Messages { messages, .. } => {
                let contents = messages.iter().flat_map(|message| &message.content);
                contents
                    .filter_map(|content| match content {
                        Content::Image { source } => Some(source),
                        Content::Text { .. } => None,
                    })
                    .collect()
            }
            Self::Prompt(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    PromptPart::Image(source) => Some(source),
                    PromptPart::Text(_) => None,
                })
                .collect(),
        }
    }

    /// Reads relative image paths from `folder`, which is where the file with the sample lies.
    pub fn resolve_paths(&mut self, folder: &Path) {
        let sources: Box<dyn Iterator<Item = &mut ImageSource>> = match self {
            Self::Text { images, .. } => Box::new(images.iter_mut()),
            Self::Messages { messages, .. } => {
                let contents = messages.iter_mut().flat_map(|message| &mut message.content);
                Box::new(contents.filter_map(|content| match content {
                    Content::Image { source } => Some(source),
                    Content::Text { .. } => None,
                }))
            }
            Self::Prompt(parts) => Box::new(parts.iter_mut().filter_map(|part| match part {
                PromptPart::Image(source) => Some(source),
                PromptPart::Text(_) => None,
            })),
        };
        for source in sources {
            if let ImageSource::Path(path) = source {
                *path = folder.join(&*path); // an absolute path stays as it is
            }
        }
    }
}

impl Message {
    /// A message of one text.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: vec![Content::text(text)] }
    }
}

impl Content {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// A picture.
    pub fn image(source: impl Into<ImageSource>) -> Self {
        Self::Image { source: source.into() }
    }
}

/// All keys of all forms, so that an error can say which one is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSample {
    text: Option<String>,
    images: Option<Vec<String>>,
    messages: Option<Vec<Message>>,
    add_generation_prompt: Option<bool>,
    prompt: Option<Vec<PromptPart>>,
}

impl TryFrom<RawSample> for Sample {
    type Error = String;

    fn try_from(raw: RawSample) -> Result<Self, String> {
        let RawSample { text, images, messages, add_generation_prompt, prompt } = raw;
        match (text, messages, prompt) {
            (Some(text), None, None) => {
                if add_generation_prompt.is_some() {
                    return Err("`add_generation_prompt` belongs to `messages`, not to `text`".to_owned());
                }
                let images = images.unwrap_or_default().iter().map(|image| source(image)).collect::<Result<_, _>>()?;
                Ok(Self::Text { text, images })
            }
            (None, Some(messages), None) => {
                if images.is_some() {
                    return Err(
                        "`images` belongs to `text`; put the images of `messages` into their content".to_owned()
                    );
                }
                Ok(Self::Messages { messages, add_generation_prompt: add_generation_prompt.unwrap_or(false) })
            }
            (None, None, Some(parts)) => {
                if images.is_some() || add_generation_prompt.is_some() {
                    return Err("`prompt` stands alone; put its images into the list".to_owned());
                }
                Ok(Self::Prompt(parts))
            }
            _ => Err("a sample has exactly one of `text`, `messages` and `prompt`".to_owned()),
        }
    }
}

#[derive(Deserialize)]
struct RawContent {
    r#type: String,
    text: Option<String>,
    path: Option<String>,
    url: Option<String>,
    image: Option<String>,
    base64: Option<String>,
    data: Option<String>,
    image_url: Option<ImageUrl>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ImageUrl {
    Object { url: String },
    Text(String),
}

impl TryFrom<RawContent> for Content {
    type Error = String;

    fn try_from(raw: RawContent) -> Result<Self, String> {
        match raw.r#type.as_str() {
            "text" => match raw.text {
                Some(text) => Ok(Self::Text { text }),
                None => Err("content of type `text` has no `text`".to_owned()),
            },
            "image" | "image_url" => {
                let image_url = raw.image_url.map(|image_url| match image_url {
                    ImageUrl::Object { url } | ImageUrl::Text(url) => url,
                });
                let base64 = raw.base64.or(raw.data).map(|data| match data.starts_with("data:") {
                    true => data,
                    false => format!("data:application/octet-stream;base64,{data}"),
                });
                let mut given = [raw.image, raw.url, raw.path, base64, image_url].into_iter().flatten();
                match (given.next(), given.next()) {
                    (Some(image), None) => Ok(Self::Image { source: source(&image)? }),
                    (None, _) => Err("content of type `image` has no `path`, `url`, `image` or `base64`".to_owned()),
                    (Some(_), Some(_)) => Err("content of type `image` names more than one image".to_owned()),
                }
            }
            other => Err(format!("content of type `{other}`; expected `text` or `image`")),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPromptPart {
    Text(String),
    Image { image: String },
}

impl TryFrom<RawPromptPart> for PromptPart {
    type Error = String;

    fn try_from(raw: RawPromptPart) -> Result<Self, String> {
        match raw {
            RawPromptPart::Image { image } => Ok(Self::Image(source(&image)?)),
            RawPromptPart::Text(text) => {
                let trimmed = text.trim_matches(' ');
                let is_url = ["http://", "https://"].iter().any(|scheme| trimmed.starts_with(scheme));
                match is_url && !trimmed.contains(' ') {
                    true => Ok(Self::Image(source(trimmed)?)),
                    false => Ok(Self::Text(text)),
                }
            }
        }
    }
}

fn source(image: &str) -> Result<ImageSource, String> {
    image.parse::<ImageSource>().map_err(|error| error.to_string())
}

fn content_or_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Content>, D::Error> {
    struct ContentVisitor;
    impl<'de> serde::de::Visitor<'de> for ContentVisitor {
        type Value = Vec<Content>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a string or a list of content parts")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![Content::text(text)])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Deserialize::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
        }
    }
    deserializer.deserialize_any(ContentVisitor)
}
