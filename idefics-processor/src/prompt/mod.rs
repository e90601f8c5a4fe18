//! Turns samples into the text to encode: chat templates, image placeholders, and protection of special tokens in user
//! text.

mod conversation;
mod image_tokens;
mod json;
mod json_video;
mod literal;
mod message;
mod render;
mod sample;
mod template;
mod variables;

pub use crate::families::expand_images;
pub use image_tokens::ImageTokens;
pub use json::{SampleError, SampleProblem};
pub(crate) use literal::find_token;
pub use literal::{Literals, SpecialTokensInText};
pub use message::{Content, Message, MessageContent};
pub(crate) use render::{Conversations, check, check_images, check_videos};
pub(crate) use sample::texts_of_parts;
pub use sample::{Chat, PromptPart, Sample};
pub use template::{ChatTemplate, TextLimits};
pub(crate) use variables::{MAX_DEPTH, Variables, is_word};
