//! From samples to the text that the tokenizer encodes: chat templates, placeholders, and user text kept literal.

mod conversation;
mod expand;
mod interleaved;
mod json;
mod literal;
mod message;
mod render;
mod sample;
mod template;
mod variables;

pub use expand::{ImageTokens, expand_images};
pub(crate) use interleaved::InterleavedRules;
pub use json::{SampleError, SampleProblem};
pub(crate) use literal::find_token;
pub use literal::{Literals, SpecialTokensInText};
pub use message::{Content, Message, MessageContent};
pub(crate) use render::{Conversations, check, check_images};
pub(crate) use sample::texts_of_parts;
pub use sample::{Chat, PromptPart, Sample};
pub use template::{ChatTemplate, TextLimits};
pub(crate) use variables::{MAX_DEPTH, Variables, is_word};
