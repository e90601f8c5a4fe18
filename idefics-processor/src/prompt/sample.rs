//! Samples: the rows of a batch.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::image::ImageSource;
use crate::prompt::{Content, Message};
use crate::video::VideoSource;

/// One row of a batch.
///
/// In JSON, the keys select one of three forms:
/// ```json
/// {"text": "User:<image>What is this?<end_of_utterance>\nAssistant:", "images": ["cat.png"]}
/// {"messages": [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]}],
///  "add_generation_prompt": true}
/// {"prompt": ["User:", {"image": "cat.png"}, "Describe this.\nAssistant:"]}
/// ```
/// An image is a path, an `http(s)` URL, a `data:` URL, or a base64-encoded image file. The first two forms may have
/// videos too: `"videos": […]` with one `<video>` placeholder for each, or message parts of the type `video`. See
/// [`VideoSource`] for the form of a video. Other keys, such as `id`, are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
#[non_exhaustive]
pub enum Sample {
    /// A text with one `<image>` placeholder per image and one `<video>` placeholder per video. All special tokens in
    /// the text are parsed.
    Text {
        /// The text.
        text: String,
        /// Images in the order of their placeholders.
        images: Vec<ImageSource>,
        /// Videos in the order of their placeholders.
        videos: Vec<VideoSource>,
    },
    /// A conversation, rendered with the checkpoint's chat template.
    Messages(Chat),
    /// A list of texts and images, for IDEFICS v1.
    Prompt(Vec<PromptPart>),
}

/// A conversation with the other inputs of its chat template.
///
/// In JSON, it is an object with `messages` and optionally `images`, `videos`, `add_generation_prompt`, `tools`,
/// `documents` and `chat_template_kwargs`.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Chat {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Images for the image parts without an image of their own, in order.
    pub images: Vec<ImageSource>,
    /// Videos for the video parts without a video of their own, in order.
    pub videos: Vec<VideoSource>,
    /// Whether the text ends with the start of the assistant's turn; `false` by default, as in the reference.
    pub add_generation_prompt: bool,
    /// Schemas of the tools that the assistant may call. Templates see `None` as `none`.
    pub tools: Option<Vec<Value>>,
    /// Documents to answer from. Templates see `None` as `none`.
    pub documents: Option<Vec<Value>>,
    /// Other template variables, such as `enable_thinking`: the `**kwargs` of `apply_chat_template`. They override
    /// special tokens of the same name.
    pub template_variables: Map<String, Value>,
}

/// A part of an interleaved prompt.
///
/// In JSON, a string is a text, unless it is an `http(s)` URL without spaces. Such a URL is an image. An object like
/// `{"image": "…"}` is an image too.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PromptPart {
    /// A text.
    Text(String),
    /// An image.
    Image(ImageSource),
}

impl Sample {
    /// Creates a conversation in which the assistant speaks next.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::Messages(Chat::new(messages).with_generation_prompt())
    }

    /// Returns the images of this sample, in the order of the text.
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

    /// Returns the videos of this sample, in the order of the text.
    pub fn videos(&self) -> Vec<&VideoSource> {
        match self {
            Self::Text { videos, .. } => videos.iter().collect(),
            Self::Messages(chat) => chat.all_videos(),
            Self::Prompt(_) => Vec::new(),
        }
    }

    /// Returns the total length of all texts, in bytes.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Messages(chat) => chat.messages.iter().flat_map(Message::texts).map(str::len).sum(),
            Self::Prompt(parts) => texts_of_parts(parts).map(str::len).sum(),
        }
    }

    /// Returns the types of message parts that are not text, image or video. Such parts are only passed to the chat
    /// template, which ignores them unless it knows their type.
    pub fn unknown_part_types(&self) -> BTreeSet<&str> {
        let Self::Messages(chat) = self else { return BTreeSet::new() };
        let parts = chat.messages.iter().flat_map(Message::parts);
        let kinds = parts.filter_map(|part| match part {
            Content::Other(keys) => keys.get("type")?.as_str(),
            Content::Text { .. } | Content::Image { .. } | Content::Video { .. } => None,
        });
        kinds.collect()
    }

    /// Resolves relative paths of images and videos against `folder`, usually the folder of the file that contains the
    /// sample.
    pub fn resolve_paths(&mut self, folder: &Path) {
        self.videos_mut().for_each(|video| video.resolve(folder));
        let sources: Box<dyn Iterator<Item = &mut ImageSource>> = match self {
            Self::Text { images, .. } => Box::new(images.iter_mut()),
            Self::Messages(Chat { messages, images, .. }) => {
                let contents = messages.iter_mut().flat_map(Message::parts_mut);
                let in_place = contents.filter_map(|content| match content {
                    Content::Image { source, .. } => source.as_mut(),
                    Content::Text { .. } | Content::Video { .. } | Content::Other(_) => None,
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

    fn videos_mut(&mut self) -> Box<dyn Iterator<Item = &mut VideoSource> + '_> {
        match self {
            Self::Text { videos, .. } => Box::new(videos.iter_mut()),
            Self::Messages(Chat { messages, videos, .. }) => {
                let contents = messages.iter_mut().flat_map(Message::parts_mut);
                let in_place = contents.filter_map(|content| match content {
                    Content::Video { source, .. } => source.as_mut(),
                    _ => None,
                });
                Box::new(in_place.chain(videos))
            }
            Self::Prompt(_) => Box::new(std::iter::empty()),
        }
    }
}

impl From<Chat> for Sample {
    fn from(chat: Chat) -> Self {
        Self::Messages(chat)
    }
}

impl Chat {
    /// Creates a conversation of `messages`, with defaults for all other fields.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// Sets `add_generation_prompt`, so that the assistant speaks next.
    pub fn with_generation_prompt(self) -> Self {
        Self { add_generation_prompt: true, ..self }
    }

    /// Returns the number of image parts, and the number of image parts without an image of their own.
    pub(crate) fn count_image_parts(&self) -> (usize, usize) {
        let mut parts = 0;
        let mut unfilled = 0;
        for content in self.messages.iter().flat_map(Message::parts) {
            if let Content::Image { source, .. } = content {
                parts += 1;
                unfilled += usize::from(source.is_none());
            }
        }
        (parts, unfilled)
    }

    /// Returns the number of video parts, and the number of video parts without a video of their own.
    pub(crate) fn count_video_parts(&self) -> (usize, usize) {
        let parts = self.messages.iter().flat_map(Message::parts);
        let sources = parts.filter_map(|content| match content {
            Content::Video { source, .. } => Some(source),
            _ => None,
        });
        sources.fold((0, 0), |(parts, unfilled), source| (parts + 1, unfilled + usize::from(source.is_none())))
    }

    /// Returns whether [`Chat::images`] has one entry for each image part that has no image of its own. The result is
    /// always true if there are no image parts, because the rendered text may then have placeholders of its own.
    pub(crate) fn images_fit(&self) -> bool {
        let (parts, unfilled) = self.count_image_parts();
        self.images.len() == unfilled || parts == 0
    }

    /// Returns the images of all parts, in order. Parts without an image of their own take the next entry of
    /// [`Chat::images`].
    fn all_images(&self) -> Vec<&ImageSource> {
        let mut separate = self.images.iter();
        let mut images = Vec::new();
        for content in self.messages.iter().flat_map(Message::parts) {
            if let Content::Image { source, .. } = content {
                images.extend(source.as_ref().or_else(|| separate.next()));
            }
        }
        images.extend(separate);
        images
    }

    /// Returns the videos of all parts, in order. Parts without a video of their own take the next entry of
    /// [`Chat::videos`].
    fn all_videos(&self) -> Vec<&VideoSource> {
        let mut separate = self.videos.iter();
        let mut videos = Vec::new();
        for content in self.messages.iter().flat_map(Message::parts) {
            if let Content::Video { source, .. } = content {
                videos.extend(source.as_ref().or_else(|| separate.next()));
            }
        }
        videos.extend(separate);
        videos
    }
}

/// Returns the texts of a prompt list.
pub(crate) fn texts_of_parts(parts: &[PromptPart]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        PromptPart::Text(text) => Some(text.as_str()),
        PromptPart::Image(_) => None,
    })
}
