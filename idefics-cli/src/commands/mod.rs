//! The commands, one file each, and helpers that they share.

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
pub(crate) mod models;
pub(crate) mod quantize;
pub(crate) mod warm_up;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message, Sample, VideoError, VideoSource};
use idefics_generate::{CompiledGrammar, GenerationConfig, GenerationWarning, Grammar, Idefics};

use crate::args::Global;
use crate::failure::Failure;
use crate::media::{self, Media};
use crate::model;

/// Maximum number of warnings about the types of message parts.
const MAX_WARNINGS: usize = 8;

/// Checks the generation options, loads the model and prints warnings about the options.
fn load(global: &Global, options: &GenerationConfig) -> Result<Idefics, Failure> {
    let folder = model::folder(global)?;
    options.validate_with_folder(folder.path())?; // loading may take minutes
    let model = model::load_from(global, folder)?;
    warn(global, &model, options);
    Ok(model)
}

/// Prints warnings about generation options. Options of the command line get all warnings. Options of the model folder
/// get only warnings about unknown keys, or all warnings with `-v`.
fn warn(global: &Global, model: &Idefics, options: &GenerationConfig) {
    let together = options.over(model.generation_config());
    let folder_warnings = model.generation_config().warnings();
    for warning in together.warnings() {
        let is_unknown = matches!(warning, GenerationWarning::UnknownKey { .. });
        if global.verbose || is_unknown || !folder_warnings.contains(&warning) {
            say!("warning: {warning}");
        }
    }
}

/// Prints warnings about message parts of `sample` that only the chat template sees. There is one warning per type and
/// run.
fn warn_about_parts(sample: &Sample) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    for kind in sample.unknown_part_types() {
        if said.len() < MAX_WARNINGS && said.insert(kind.to_owned()) {
            say!(
                "warning: parts of the type {kind:?} are not shown to the model, unless its chat template knows this \
                 type; known everywhere are `text`, `image` and `video`"
            );
        }
    }
}

/// Compiles the grammar that was given, if any, for a model.
fn compile(model: &Idefics, grammar: Option<&Grammar>) -> Result<Option<CompiledGrammar>, Failure> {
    Ok(grammar.map(|grammar| model.compile_grammar(grammar)).transpose()?)
}

/// Fails if an image file is missing, or if a folder has no pictures. Checked before the model is loaded, which may take
/// minutes.
fn check_images<'a>(images: impl IntoIterator<Item = &'a ImageSource>) -> Result<(), Failure> {
    for image in images {
        let ImageSource::Path(path) = image else { continue };
        let metadata = std::fs::metadata(path).map_err(|error| Failure::io_named(&image.to_string(), &error))?;
        // The files of a folder are the folder itself and its pictures.
        if metadata.is_dir() && VideoSource::from(path.clone()).files().len() == 1 {
            return Err(Failure::input(VideoError::NoFrames { video: image.to_string() }.to_string()));
        }
    }
    Ok(())
}

/// Fails if a file of a video is missing. Checked at the same time as [`check_images`].
fn check_videos<'a>(videos: impl IntoIterator<Item = &'a VideoSource>) -> Result<(), Failure> {
    for path in videos.into_iter().flat_map(VideoSource::files) {
        std::fs::metadata(&path).map_err(|error| Failure::io(&path, &error))?;
    }
    Ok(())
}

/// Creates a sample with images, videos and a request. For chat models, the request is a user message with the text
/// `words`. For models without a chat template, it is the text `plain` after the images.
fn sample(model: &Idefics, media: Vec<Media>, words: &str, plain: &str) -> Sample {
    if !model.processor().can_chat() {
        let placeholders: String = media.iter().map(Media::placeholder).collect();
        let (images, videos) = media::split(media);
        return Sample::Text { text: placeholders + plain, images, videos };
    }
    let mut content: Vec<Content> = media.into_iter().map(Content::from).collect();
    content.push(Content::text(words));
    Sample::chat(vec![Message::new("user", content)])
}
