//! Images and videos that are given on the command line.

use idefics_generate::Idefics;
use idefics_generate::processor::image::{ImageSource, Limits, ReadOptions};
use idefics_generate::processor::video::MediumKind;
use idefics_generate::processor::{Content, ProcessOptions, Sample, VideoSource};

/// An image or a video.
#[derive(Debug, Clone)]
pub(crate) enum Media {
    Image(ImageSource),
    Video(VideoSource),
}

impl Media {
    /// Decides from the content of an argument whether it is an image or a video. Folders and video files are videos.
    /// An animation is a video if the model reads videos; otherwise its first frame is an image.
    pub(crate) fn of(source: ImageSource, model: &Idefics, limits: &Limits) -> Self {
        let mut read = ReadOptions::default();
        read.limits = limits.clone();
        match MediumKind::of(&source, &read) {
            MediumKind::Animation if model.processor().reads_videos() => Self::Video(source.into()),
            MediumKind::Video => Self::Video(source.into()),
            _ => Self::Image(source),
        }
    }

    /// Returns the placeholder for this medium in a text.
    pub(crate) fn placeholder(&self) -> &'static str {
        match self {
            Self::Image(_) => "<image>",
            Self::Video(_) => "<video>",
        }
    }

    pub(crate) fn is_video(&self) -> bool {
        matches!(self, Self::Video(_))
    }
}

impl From<Media> for Content {
    fn from(media: Media) -> Self {
        match media {
            Media::Image(image) => Self::image(image),
            Media::Video(video) => Self::video(video),
        }
    }
}

/// Splits a list into its images and its videos.
pub(crate) fn split(media: Vec<Media>) -> (Vec<ImageSource>, Vec<VideoSource>) {
    let (mut images, mut videos) = (Vec::new(), Vec::new());
    for medium in media {
        match medium {
            Media::Image(image) => images.push(image),
            Media::Video(video) => videos.push(video),
        }
    }
    (images, videos)
}

/// Warns if the times of video frames are guessed because no frame rate is given.
pub(crate) fn warn_about_rates<'s>(
    samples: impl IntoIterator<Item = &'s Sample>,
    model: &Idefics,
    process: &ProcessOptions,
) {
    if process.video.native_fps.is_some() || !model.processor().reads_videos() {
        return;
    }
    let without = samples.into_iter().flat_map(Sample::videos).find(|video| video.lacks_fps());
    if let Some(video) = without {
        say!(
            "warning: no rate is given for the frames of {video}; 24 frames per second are assumed; give the rate \
             with --video-fps R"
        );
    }
}
