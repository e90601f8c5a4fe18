//! From samples to the text that the tokenizer encodes: chat templates, placeholders, and user text kept literal.

mod expand;
mod functions;
mod interleaved;
mod literal;
mod sample;
mod sandbox;
mod template;

pub use expand::{ImageTokens, expand_images};
pub(crate) use interleaved::{InterleavedRules, conversation};
pub(crate) use literal::find_token;
pub use literal::{Literals, SpecialTokensInText};
pub use sample::{Content, Message, PromptPart, Sample};
pub use template::{ChatTemplate, TextLimits};
