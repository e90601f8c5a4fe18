//! What a caller asks for: one row of a batch.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::image::ImageSource;
use crate::prompt::{Content, Message};

/// One row of a batch.
///
/// In JSON, its keys tell the three forms apart:
/// ```json
/// {"text": "User:<image>What is this?<end_of_utterance>\nAssistant:", "images": ["cat.png"]}
/// {"messages": [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]}],
///  "add_generation_prompt": true}
/// {"prompt": ["User:", {"image": "cat.png"}, "Describe this.\nAssistant:"]}
/// ```
/// An image is a path, an `http(s)` URL, a `data:` URL, or base64 of an image file. Keys that the form does not have,
/// as an `id`, are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
#[non_exhaustive]
pub enum Sample {
    /// Text in which every special token counts, with one `<image>` for each image.
    Text {
        /// The text.
        text: String,
        /// The images, in the order of their placeholders.
        images: Vec<ImageSource>,
    },
    /// A conversation that the checkpoint's chat template turns into text.
    Messages(Chat),
    /// The interleaved list of the first Idefics.
    Prompt(Vec<PromptPart>),
}

/// A conversation with what else its chat template may read.
///
/// In JSON the object with `messages`, and `images`, `add_generation_prompt`, `tools`, `documents` and
/// `chat_template_kwargs` beside it.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Chat {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// The images of those image parts that have none of their own, in order.
    pub images: Vec<ImageSource>,
    /// Whether the text ends where the assistant's answer begins; `false` by default, as in the reference.
    pub add_generation_prompt: bool,
    /// Schemas of the tools that the assistant may call; a template that is given `None` sees `none`.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from; a template that is given `None` sees `none`.
    pub documents: Option<Vec<Value>>,
    /// Further variables of the template, as `enable_thinking`: the `**kwargs` of `apply_chat_template`. They win over
    /// the special tokens' names.
    pub template_variables: Map<String, Value>,
}

/// A piece of an interleaved prompt.
///
/// In JSON a string is text, unless it is an `http(s)` URL without a space, and `{"image": "…"}` an image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PromptPart {
    /// Words.
    Text(String),
    /// A picture.
    Image(ImageSource),
}

impl Sample {
    /// A conversation in which the assistant speaks next.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::Messages(Chat::new(messages).with_generation_prompt())
    }

    /// The images of this row, in the order in which the text shows them.
    pub fn images(&self) -> Vec<&ImageSource> {
        match self {
            Self::Text { images, .. } => images.iter().collect(),
            Self::Messages(chat) => chat.all_images(),
            Self::Prompt(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    PromptPart::Image(source) => Some(source),
                    PromptPart::Text(_) => None,
                })
                .collect(),
        }
    }

    /// Bytes of all texts together.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Messages(chat) => chat.messages.iter().flat_map(Message::texts).map(str::len).sum(),
            Self::Prompt(parts) => texts_of_parts(parts).map(str::len).sum(),
        }
    }

    /// Reads relative image paths from `folder`, which is where the file with the sample lies.
    pub fn resolve_paths(&mut self, folder: &Path) {
        let sources: Box<dyn Iterator<Item = &mut ImageSource>> = match self {
            Self::Text { images, .. } => Box::new(images.iter_mut()),
            Self::Messages(Chat { messages, images, .. }) => {
                let contents = messages.iter_mut().flat_map(Message::parts_mut);
                let in_place = contents.filter_map(|content| match content {
                    Content::Image { source, .. } => source.as_mut(),
                    Content::Text { .. } | Content::Other(_) => None,
                });
                Box::new(in_place.chain(images))
            }
            Self::Prompt(parts) => Box::new(parts.iter_mut().filter_map(|part| match part {
                PromptPart::Image(source) => Some(source),
                PromptPart::Text(_) => None,
            })),
        };
        sources.for_each(|source| source.resolve(folder));
    }
}

impl From<Chat> for Sample {
    fn from(chat: Chat) -> Self {
        Self::Messages(chat)
    }
}

impl Chat {
    /// A conversation of these messages and nothing else.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// The same conversation with the assistant to speak next.
    pub fn with_generation_prompt(self) -> Self {
        Self { add_generation_prompt: true, ..self }
    }

    /// Image parts, and how many of them have no image of their own.
    pub(crate) fn count_image_parts(&self) -> (usize, usize) {
        let mut parts = 0;
        let mut open = 0;
        for content in self.messages.iter().flat_map(Message::parts) {
            if let Content::Image { source, .. } = content {
                parts += 1;
                open += usize::from(source.is_none());
            }
        }
        (parts, open)
    }

    /// Whether each image part has an image and each image a part. Where there is no image part, the text itself may
    /// have placeholders.
    pub(crate) fn images_fit(&self) -> bool {
        let (parts, open) = self.count_image_parts();
        self.images.len() == open || parts == 0
    }

    /// The images of the parts in order; those in [`Chat::images`] fill the parts that have none of their own.
    fn all_images(&self) -> Vec<&ImageSource> {
        let mut apart = self.images.iter();
        let mut images = Vec::new();
        for content in self.messages.iter().flat_map(Message::parts) {
            if let Content::Image { source, .. } = content {
                images.extend(source.as_ref().or_else(|| apart.next()));
            }
        }
        images.extend(apart);
        images
    }
}

/// The texts of a prompt list.
pub(crate) fn texts_of_parts(parts: &[PromptPart]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        PromptPart::Text(text) => Some(text.as_str()),
        PromptPart::Image(_) => None,
    })
}
