//! The source of a video: a file, a folder, or a list of pictures.

use std::fmt;
use std::path::{Path, PathBuf};

use idefics_image::{Animation, Avi};

use crate::image::{Alpha, ImageSource, ReadOptions};
use crate::video::{container, folder};

/// A video of a sample.
///
/// In JSON, `{"frames": ["0.png", "1.png"], "fps": 10.0, "total_num_frames": 2, "duration": 0.2}`, or a file or folder
/// as `{"path": "clip.mp4"}`. Everything except the frames is optional. A string instead of an object is the path, and
/// a list is the frames.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VideoSource {
    /// The frames.
    pub frames: VideoFrames,
    /// Frames per second. `None` takes the rate that the file states.
    pub fps: Option<f64>,
    /// Number of frames of the video. `None` takes the number of frames that are found.
    pub total_num_frames: Option<usize>,
    /// Length in seconds. `None` takes the length that the file states.
    pub duration: Option<f64>,
    /// Indices of the frames to show, in ascending order. [`VideoFrames::Pictures`] must have one picture per index.
    /// With `None`, frames are sampled.
    pub frames_indices: Option<Vec<usize>>,
}

/// The frames of a video.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VideoFrames {
    /// One picture per frame.
    Pictures(Vec<ImageSource>),
    /// A video file, an animation, or a folder with one picture per frame, in the order of their names.
    File(ImageSource),
}

impl VideoSource {
    /// Creates a video of these frames, without further information.
    pub fn new(frames: VideoFrames) -> Self {
        Self { frames, fps: None, total_num_frames: None, duration: None, frames_indices: None }
    }

    /// Returns the local files and folders that the video is read from, including the frames in a folder.
    pub fn files(&self) -> Vec<PathBuf> {
        let pictures = match &self.frames {
            VideoFrames::Pictures(pictures) => pictures.as_slice(),
            VideoFrames::File(file) => std::slice::from_ref(file),
        };
        let mut files: Vec<PathBuf> =
            pictures.iter().filter_map(ImageSource::file).map(|path| path.into_owned()).collect();
        if let [folder] = files.as_slice()
            && folder.is_dir()
        {
            let frames = folder::frames(folder).unwrap_or_default();
            files.extend(frames);
        }
        files
    }

    /// Returns whether the frames are pictures without a stated rate.
    pub fn lacks_fps(&self) -> bool {
        let is_pictures = match &self.frames {
            VideoFrames::Pictures(_) => true,
            VideoFrames::File(file) => file.file().is_some_and(|path| path.is_dir()),
        };
        is_pictures && self.fps.is_none()
    }

    /// Resolves relative paths against `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        match &mut self.frames {
            VideoFrames::Pictures(pictures) => pictures.iter_mut().for_each(|picture| picture.resolve(folder)),
            VideoFrames::File(file) => file.resolve(folder),
        }
    }
}

/// The kind of medium that a source contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediumKind {
    /// A still picture, or something that cannot be read.
    Picture,
    /// An animated GIF, WebP or PNG with more than one frame.
    Animation,
    /// A folder, or a file of a video format.
    Video,
}

impl MediumKind {
    /// Detects the kind of a local file or folder from its content. Other sources count as pictures. A source that
    /// cannot be read counts as a picture too, so that the decoder reports the error.
    pub fn of(source: &ImageSource, read: &ReadOptions) -> Self {
        let path = match source {
            ImageSource::Path(path) => path.clone(),
            // The name of a folder may look like base64.
            ImageSource::Base64 { text, folder } if !text.is_empty() && text.len() <= 4096 => folder.join(text),
            _ => return Self::Picture,
        };
        let Ok(metadata) = std::fs::metadata(&path) else { return Self::Picture };
        if metadata.is_dir() {
            return Self::Video;
        }
        let Some(Ok(head)) = metadata.is_file().then(|| container::head(&path)) else { return Self::Picture };
        if Avi::is_avi(&head) || container::sniff(&head).is_some() {
            return Self::Video;
        }
        if !container::may_be_animated(&head) {
            return Self::Picture;
        }
        let path = ImageSource::Path(path);
        let Ok(bytes) = path.read_with(read) else { return Self::Picture };
        match Animation::open(&bytes, "", read, Alpha::White) {
            Ok(Some(animation)) if animation.len() > 1 => Self::Animation,
            _ => Self::Picture,
        }
    }
}

/// The name of the video in messages: the path or URL, or the number of its pictures.
impl fmt::Display for VideoSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.frames {
            VideoFrames::Pictures(pictures) => write!(f, "a list of {} frames", pictures.len()),
            VideoFrames::File(file) => file.fmt(f),
        }
    }
}

impl From<PathBuf> for VideoSource {
    fn from(path: PathBuf) -> Self {
        Self::new(VideoFrames::File(path.into()))
    }
}

impl From<ImageSource> for VideoSource {
    fn from(file: ImageSource) -> Self {
        // A string that could be base64 or a path is taken as a path here.
        let file = match file {
            ImageSource::Base64 { text, folder } => ImageSource::Path(folder.join(text)),
            file => file,
        };
        Self::new(VideoFrames::File(file))
    }
}

impl From<Vec<ImageSource>> for VideoSource {
    fn from(pictures: Vec<ImageSource>) -> Self {
        Self::new(VideoFrames::Pictures(pictures))
    }
}
