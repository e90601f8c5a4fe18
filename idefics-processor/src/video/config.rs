//! The settings for videos in a checkpoint.

use serde_json::{Map, Value};

use crate::families::FamilyRules;
use crate::image::{ImageConfigError, ImageProcessorConfig, ImageSize, field_error};
use crate::video::{VideoRules, VideoSampling};

/// Largest `longest_edge` of a frame, in pixels. Source: `MAX_IMAGE_SIZE` of `video_processing_smolvlm.py`, which is
/// applied before the shorter side is made even.
const MAX_SIDE: u32 = 4096;

/// Which frames of a video are sampled, and how they become tiles.
#[derive(Debug, Clone)]
pub(crate) struct VideoSettings {
    /// Settings for a single frame, which is never split.
    pub(crate) images: ImageProcessorConfig,
    pub(crate) sampling: VideoSampling,
}

/// Reads the settings for videos. `section` has the same keys as for pictures. The sampling is given by
/// `video_sampling` (with `fps`, `max_frames` and `video_size`), or by `fps` and `num_frames`. A `size` takes
/// precedence over `video_size`.
///
/// Source: `SmolVLMVideoProcessor.__init__`.
///
/// # Errors
/// [`ImageConfigError::Field`] for a value that is invalid or not supported.
pub(crate) fn settings(
    section: &Map<String, Value>,
    family: &dyn FamilyRules,
    rules: &VideoRules,
) -> Result<VideoSettings, ImageConfigError> {
    let present = |object: &Map<String, Value>, key: &str| object.get(key).filter(|value| !value.is_null()).cloned();
    let mut section = section.clone();
    let mut sampling = rules.sampling;
    let (mut fps, mut count) = (("fps", present(&section, "fps")), ("num_frames", present(&section, "num_frames")));
    match present(&section, "video_sampling") {
        None => {}
        Some(Value::Object(video)) => {
            fps = ("video_sampling.fps", present(&video, "fps").or(fps.1));
            count = ("video_sampling.max_frames", present(&video, "max_frames").or(count.1));
            if let (None, Some(size)) = (present(&section, "size"), present(&video, "video_size")) {
                section.insert("size".to_owned(), size);
            }
        }
        Some(other) => return Err(field_error("video_sampling", &other, "an object with `fps` and `max_frames`")),
    }
    if let (name, Some(value)) = fps {
        let rate = value.as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
        sampling.fps = rate.ok_or_else(|| field_error(name, &value, "a number of frames per second above 0"))?;
    }
    if let (name, Some(value)) = count {
        let number = value.as_u64().filter(|number| *number > 0).and_then(|number| usize::try_from(number).ok());
        sampling.num_frames = number.ok_or_else(|| field_error(name, &value, "a whole number of at least 1"))?;
    }
    section.remove("image_processor_type"); // the class that reads pictures, which does not matter here
    let mut images = family.image_config(section)?;
    images.do_image_splitting = false;
    if let ImageSize::LongestEdge { longest_edge } = &mut images.size {
        *longest_edge = MAX_SIDE.min(*longest_edge);
    }
    Ok(VideoSettings { images, sampling })
}
