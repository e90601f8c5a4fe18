//! Parses videos from JSON. Errors name the field that is wrong.

use serde_json::{Map, Value};

use crate::image::ImageSource;
use crate::prompt::json::{Parsed, image, kind, parse_list, source, take_value};
use crate::prompt::message::with_short_names;
use crate::prompt::{Content, SampleError, SampleProblem};
use crate::video::{VideoFrames, VideoSource};

/// Keys that may name the frames of a video.
const VIDEO_KEYS: [&str; 5] = ["video", "path", "url", "frames", "video_url"];

/// Parses the field `videos`, a list of videos.
pub(super) fn video_list(value: Value) -> Parsed<Vec<VideoSource>> {
    parse_list(value, "a list of videos", |item| match item {
        Value::Object(keys) => match video(&keys)? {
            Some(video) => Ok(video),
            None => {
                let expected = "a list of picture files, or `path` with a file or folder";
                Err(SampleError::new(SampleProblem::Missing { key: "frames", expected }))
            }
        },
        other => Ok(VideoSource::new(frames(&other)?)),
    })
}

/// Parses a message part of the type `video` or `video_url`.
pub(super) fn video_part(mut keys: Map<String, Value>) -> Parsed<Content> {
    let is_url = take_value(&mut keys, "type").is_some_and(|name| name == "video_url");
    let source = video(&keys)?;
    if let Some(url) = keys.get("video_url").filter(|_| is_url) {
        let url = url.get("url").unwrap_or(url).clone();
        keys = [("type".to_owned(), Value::Null), ("url".to_owned(), url)].into_iter().collect();
    }
    // Lists of frames are emptied, because templates do not need the names of all frames.
    let lists = VIDEO_KEYS.iter().filter(|key| keys.get(**key).is_some_and(Value::is_array));
    for key in lists.copied().collect::<Vec<_>>() {
        keys.insert(key.to_owned(), Value::Array(Vec::new()));
    }
    Ok(Content::Video { source, keys: with_short_names(keys) })
}

/// Parses the video that an object describes. Returns `None` if the object names no frames.
fn video(keys: &Map<String, Value>) -> Parsed<Option<VideoSource>> {
    let given: Vec<&str> =
        VIDEO_KEYS.into_iter().filter(|key| keys.get(*key).is_some_and(|value| !value.is_null())).collect();
    let frames = match given.as_slice() {
        [] => return Ok(None),
        &["video_url"] => {
            let url = keys["video_url"].get("url").unwrap_or(&keys["video_url"]);
            frames(url).map_err(|error| error.under("video_url"))?
        }
        &[key] => frames(&keys[key]).map_err(|error| error.under(key))?,
        several => {
            let keys = several.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            return Err(SampleError::new(SampleProblem::SeveralVideos { keys }));
        }
    };
    let present = |key: &str| keys.get(key).filter(|value| !value.is_null());
    let number = |key: &str, expected| match present(key) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(kind(value, expected).under(key)),
        },
    };
    let count = |value: &Value| {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| kind(value, "a whole number"))
    };
    let mut video = VideoSource::new(frames);
    video.fps = number("fps", "a number of frames per second")?;
    video.duration = number("duration", "a number of seconds")?;
    video.total_num_frames =
        present("total_num_frames").map(count).transpose().map_err(|error| error.under("total_num_frames"))?;
    video.frames_indices = present("frames_indices")
        .map(|list| parse_list(list.clone(), "a list of whole numbers", |item| count(&item)))
        .transpose()
        .map_err(|error| error.under("frames_indices"))?;
    Ok(Some(video))
}

/// Parses the frames of a video: a file or folder, or a list of pictures.
fn frames(value: &Value) -> Parsed<VideoFrames> {
    match value {
        Value::String(name) if name.starts_with("data:") || name.contains("://") => {
            Ok(VideoFrames::File(source(name)?))
        }
        // Always a path and never base64, because the name of a folder may look like base64.
        Value::String(name) => Ok(VideoFrames::File(ImageSource::Path(name.into()))),
        Value::Array(_) => {
            let pictures =
                parse_list(value.clone(), "a list of pictures", |item| image(&item, "a path, a URL or a data URL"));
            Ok(VideoFrames::Pictures(pictures?))
        }
        other => Err(kind(other, "a path, a URL, or a list of picture files")),
    }
}
