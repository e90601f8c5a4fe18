//! One file a command.

pub(crate) mod ask;
pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod caption;
pub(crate) mod chat;
pub(crate) mod classify;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod manual;
pub(crate) mod quantize;
pub(crate) mod warm_up;

use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message, Sample};
use idefics_generate::{GenerationConfig, GenerationWarning, Idefics};

use crate::args::Global;
use crate::failure::Failure;

/// Says what is odd about the options of the call, and which of the model folder's are unknown, with `-v` all that is
/// odd about them.
fn warn(global: &Global, model: &Idefics, options: &GenerationConfig) {
    let together = options.over(model.generation_config());
    let of_folder = model.generation_config().warnings();
    for warning in together.warnings() {
        let is_unknown = matches!(warning, GenerationWarning::UnknownKey { .. });
        if global.verbose || is_unknown || !of_folder.contains(&warning) {
            say!("warning: {warning}");
        }
    }
}

/// Says that an image is missing before a model is loaded, which may take minutes.
fn check_images<'a>(images: impl IntoIterator<Item = &'a ImageSource>) -> Result<(), Failure> {
    for image in images {
        if let ImageSource::Path(path) = image {
            std::fs::metadata(path).map_err(|error| Failure::of_io(&image.to_string(), &error))?;
        }
    }
    Ok(())
}

/// A user's turn of images and words for a model that chats, or `plain` after the images for one that cannot chat.
fn sample(model: &Idefics, images: Vec<ImageSource>, words: &str, plain: &str) -> Sample {
    if !model.processor().can_chat() {
        return Sample::Text { text: format!("{}{plain}", "<image>".repeat(images.len())), images };
    }
    let mut content: Vec<Content> = images.into_iter().map(Content::image).collect();
    content.push(Content::text(words));
    Sample::chat(vec![Message::new("user", content)])
}
