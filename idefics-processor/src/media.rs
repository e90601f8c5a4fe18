//! Loads the images and videos of a row.

use rayon::prelude::*;

use crate::error::ProcessorError;
use crate::families::TileGrid;
use crate::image::{ImageProcessor, ImageSource, ImageTile};
use crate::processor::{MAX_TILES, ProcessOptions};
use crate::prompt::ChatTemplate;
use crate::video::{Medium, SampledVideo, VIDEO_TOKEN, VideoReader, VideoSampling, VideoSource, split_media};

/// The images or the videos of a row. Each entry has two parts: what the prompt needs to know (the grid of an image, or
/// the sampled frames of a video), and the tiles.
pub(crate) type Loaded<T> = Vec<(T, Vec<ImageTile>)>;

/// The additional parts of a processor whose family reads videos.
#[derive(Debug, Clone)]
pub(crate) struct VideoProcessor {
    /// Turns a frame into one tile.
    pub(crate) images: ImageProcessor,
    pub(crate) sampling: VideoSampling,
    /// The chat template for conversations with videos.
    pub(crate) chat_template: ChatTemplate,
}

impl VideoProcessor {
    /// Loads the videos of one row.
    pub(crate) fn load(
        &self,
        sources: &[&VideoSource],
        row: usize,
        options: &ProcessOptions,
    ) -> Result<Loaded<SampledVideo>, ProcessorError> {
        let read = options.read();
        let reader = VideoReader {
            images: &self.images,
            sampling: self.sampling,
            options: &options.video,
            read: &read,
            decoding: options.decoding(),
        };
        let load = |(video, source): (usize, &&VideoSource)| {
            reader.load(source).map_err(|error| ProcessorError::Video { row, video, error })
        };
        sources.iter().enumerate().map(load).collect()
    }
}

/// Loads the images of one row in parallel.
pub(crate) fn load_images(
    processor: &ImageProcessor,
    sources: &[&ImageSource],
    row: usize,
    options: &ProcessOptions,
) -> Result<Loaded<TileGrid>, ProcessorError> {
    let read = options.read();
    let load = |(image, source): (usize, &&ImageSource)| {
        let loaded = processor.load(source, &read, options.decoding(), options.max_tiles.unwrap_or(MAX_TILES));
        loaded.map_err(|error| ProcessorError::Image { row, image, error })
    };
    let images: Vec<Result<(TileGrid, Vec<ImageTile>), ProcessorError>> =
        sources.par_iter().enumerate().map(load).collect();
    images.into_iter().collect()
}

/// Moves the tiles of one row out of `pictures` and `clips`, in the order of the placeholders in its text.
pub(crate) fn in_order(
    text: &str,
    image_token: &str,
    pictures: &mut Loaded<TileGrid>,
    clips: &mut Loaded<SampledVideo>,
) -> Vec<ImageTile> {
    let mut pictures = pictures.iter_mut().map(|(_, tiles)| std::mem::take(tiles));
    if clips.is_empty() {
        return pictures.flatten().collect();
    }
    let mut clips = clips.iter_mut().map(|(_, tiles)| std::mem::take(tiles));
    let (parts, _) = split_media(text, image_token, Some(VIDEO_TOKEN));
    let next = |(_, medium)| match medium {
        Medium::Image => pictures.next(),
        Medium::Video => clips.next(),
    };
    parts.into_iter().filter_map(next).flatten().collect()
}

/// Drops the tiles and keeps the grid or the sampled frames of each image or video.
pub(crate) fn without_tiles<T>(loaded: Loaded<T>) -> Vec<T> {
    loaded.into_iter().map(|(medium, _)| medium).collect()
}
