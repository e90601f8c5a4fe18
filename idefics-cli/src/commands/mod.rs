//! One file a command.

pub(crate) mod ask;
pub(crate) mod caption;
pub(crate) mod demo;
pub(crate) mod generate;
pub(crate) mod inspect;

use idefics_generate::Idefics;
use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message, Sample};

use crate::failure::Failure;

/// Says that an image is missing before a model is loaded, which may take minutes.
fn check_images<'a>(images: impl IntoIterator<Item = &'a ImageSource>) -> Result<(), Failure> {
    for image in images {
        if let ImageSource::Path(path) = image {
            std::fs::metadata(path).map_err(|error| Failure::file_system(format!("{}: {error}", path.display())))?;
        }
    }
    Ok(())
}

/// A user's turn of images and words for a model that chats, or `plain` after the images for one that has no chat
/// template.
fn sample(model: &Idefics, images: Vec<ImageSource>, words: &str, plain: &str) -> Sample {
    if model.processor().chat_template().is_none() {
        return Sample::Text { text: format!("{}{plain}", "<image>".repeat(images.len())), images };
    }
    let mut content: Vec<Content> = images.into_iter().map(Content::image).collect();
    content.push(Content::text(words));
    let message = Message { role: "user".to_owned(), content };
    Sample::Messages { messages: vec![message], add_generation_prompt: true }
}
