//! Reads a video: chooses its frames, and turns them into tiles.

use std::path::{Path, PathBuf};

use idefics_image::{Animation, Avi};
use rayon::prelude::*;

use crate::image::{DecodeOptions, Format, ImageProcessor, ImageSource, ImageTile, ReadOptions, RgbImage};
use crate::video::container::{self, Container};
use crate::video::ffmpeg::Clip;
use crate::video::{
    MAX_FRAMES, SampledVideo, VideoError, VideoFrames, VideoOptions, VideoSampling, VideoSource, folder,
};

/// Reads videos with the settings of a checkpoint and the options of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VideoReader<'a> {
    /// Turns a frame into one tile.
    pub(crate) images: &'a ImageProcessor,
    pub(crate) sampling: VideoSampling,
    pub(crate) options: &'a VideoOptions,
    pub(crate) read: &'a ReadOptions,
    pub(crate) decoding: DecodeOptions,
}

/// What a file states about its video.
#[derive(Debug, Clone, Copy)]
struct Stated {
    /// Whether each frame is a separate picture.
    is_list: bool,
    n_frames: usize,
    fps: Option<f64>,
    duration: Option<f64>,
}

impl VideoReader<'_> {
    /// Reads a video. Returns the frames that are shown to the model, and one tile for each.
    pub(crate) fn load(&self, video: &VideoSource) -> Result<(SampledVideo, Vec<ImageTile>), VideoError> {
        match &video.frames {
            VideoFrames::Pictures(pictures) => self.load_pictures(video, pictures),
            VideoFrames::File(file) => match folder_of(file) {
                Some(path) => {
                    let allowed = self.read.sources.file(&path)?;
                    let pictures: Vec<ImageSource> =
                        folder::frames(&allowed)?.into_iter().map(ImageSource::Path).collect();
                    self.load_pictures(video, &pictures)
                }
                None => self.load_file(video, file),
            },
        }
    }

    fn load_pictures(
        &self,
        video: &VideoSource,
        pictures: &[ImageSource],
    ) -> Result<(SampledVideo, Vec<ImageTile>), VideoError> {
        let stated = Stated { is_list: true, n_frames: pictures.len(), fps: None, duration: None };
        if pictures.is_empty() {
            return Err(VideoError::NoFrames { video: video.to_string() });
        }
        if let Some(indices) = &video.frames_indices
            && indices.len() != pictures.len()
        {
            let found = format!("a list of length {}", indices.len());
            let expected = format!("one index per frame, {} in total", pictures.len());
            return Err(VideoError::Field { field: "frames_indices", found, expected });
        }
        let sampled = self.sample(video, stated)?;
        let shown: Vec<&ImageSource> = match &video.frames_indices {
            Some(_) => pictures.iter().collect(),
            None => sampled.frames_indices.iter().map(|&index| &pictures[index]).collect(),
        };
        let load = |picture: &ImageSource| self.images.load(picture, self.read, self.decoding, 1);
        let tiles: Vec<_> = shown.par_iter().map(|picture| load(picture)).collect();
        let tiles: Vec<Vec<ImageTile>> =
            tiles.into_iter().map(|loaded| loaded.map(|(_, tiles)| tiles)).collect::<Result<_, _>>()?;
        Ok((sampled, tiles.into_iter().flatten().collect()))
    }

    fn load_file(&self, video: &VideoSource, file: &ImageSource) -> Result<(SampledVideo, Vec<ImageTile>), VideoError> {
        let local = file.file().map(|path| self.read.sources.file(&path)).transpose()?;
        if let Some(path) = &local {
            std::fs::metadata(path).map_err(|error| VideoError::Read { path: path.clone(), error })?;
        }
        let regular = local.as_deref().filter(|path| path.is_file());
        if let Some(path) = regular {
            let head = container::head(path)?;
            if let Some(container) = container::sniff(&head) {
                return self.load_clip(video, path, container);
            }
            // FFmpeg decodes AVI files that are too large to be read into memory.
            let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            if Avi::is_avi(&head) && bytes > self.read.limits.max_bytes {
                return self.load_clip(video, path, container::AVI);
            }
        }
        let bytes = file.read_with(self.read)?;
        let name = file.to_string();
        if Avi::is_avi(&bytes) {
            let avi = Avi::open(&bytes, &name, self.read)?;
            return match regular {
                Some(path) if !avi.is_motion_jpeg() => self.load_clip(video, path, container::AVI),
                None if !avi.is_motion_jpeg() => Err(VideoError::NotLocal { video: name, format: "AVI" }),
                _ => {
                    let stated = Stated { is_list: false, n_frames: avi.len(), fps: avi.fps(), duration: None };
                    self.decode(video, stated, |indices, take| Ok(avi.decode(indices, take)?))
                }
            };
        }
        if let Some(animation) = Animation::open(&bytes, &name, self.read, self.decoding.alpha)? {
            let duration = Some(animation.duration().as_secs_f64()).filter(|seconds| *seconds > 0.0);
            let fps = duration.map(|seconds| animation.len() as f64 / seconds);
            let stated = Stated { is_list: false, n_frames: animation.len(), fps, duration };
            return self.decode(video, stated, |indices, take| Ok(animation.decode(indices, take)?));
        }
        if let Some(container) = container::sniff(&bytes) {
            return Err(VideoError::NotLocal { video: name, format: container.name });
        }
        Err(match Format::sniff(&bytes) {
            Ok(format) => VideoError::Picture { video: name, format: format.name() },
            Err(_) => {
                let found: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                VideoError::Format { video: name, found: found.join(" ") }
            }
        })
    }

    /// Reads a file with FFmpeg. Frames are chosen by the number of packets. If the file has fewer frames than packets,
    /// its frames are counted, and then chosen and decoded again.
    fn load_clip(
        &self,
        video: &VideoSource,
        path: &Path,
        container: Container,
    ) -> Result<(SampledVideo, Vec<ImageTile>), VideoError> {
        let path = std::path::absolute(path).map_err(|error| VideoError::Read { path: path.to_owned(), error })?;
        let name = path.display().to_string();
        let mut clip = Clip::open(path, container, self.read, self.options.decoder_timeout)?;
        let stated = |clip: &Clip<'_>| Stated {
            is_list: false,
            n_frames: clip.n_frames,
            fps: clip.fps,
            duration: clip.duration,
        };
        let mut is_short = false;
        let loaded = self.decode(video, stated(&clip), |indices, take| {
            is_short = clip.decode(indices, take)? < indices.len();
            Ok(())
        })?;
        if !is_short {
            return Ok(loaded);
        }
        clip.count_frames()?;
        self.decode(video, stated(&clip), |indices, take| {
            let n_frames = clip.decode(indices, take)?;
            if n_frames == indices.len() {
                return Ok(());
            }
            let reason = format!("only {n_frames} of {} frames were decoded", indices.len());
            Err(VideoError::Program { video: name.clone(), program: "ffmpeg", reason })
        })
    }

    /// Chooses frames, decodes them and turns each into a tile.
    fn decode(
        &self,
        video: &VideoSource,
        stated: Stated,
        decode: impl FnOnce(&[usize], &mut dyn FnMut(RgbImage)) -> Result<(), VideoError>,
    ) -> Result<(SampledVideo, Vec<ImageTile>), VideoError> {
        if stated.n_frames == 0 {
            return Err(VideoError::NoFrames { video: video.to_string() });
        }
        let sampled = self.sample(video, stated)?;
        let mut tiles: Vec<ImageTile> = Vec::with_capacity(sampled.frames_indices.len());
        decode(&sampled.frames_indices, &mut |frame| tiles.extend(self.images.process(&frame)))?;
        Ok((sampled, tiles))
    }

    /// Chooses the frames to show, according to the sample, the file, the options and the checkpoint.
    fn sample(&self, video: &VideoSource, stated: Stated) -> Result<SampledVideo, VideoError> {
        let fps = video.fps.or(stated.fps).or(self.options.native_fps);
        let is_fps_assumed = fps.is_none();
        let fps = fps.unwrap_or(SampledVideo::DEFAULT_FPS);
        if !(fps.is_finite() && fps > 0.0) {
            return Err(field("fps", fps, "a number of frames per second above 0"));
        }
        let duration = video.duration.or(stated.duration);
        if let Some(seconds) = duration.filter(|seconds| !(seconds.is_finite() && *seconds >= 0.0)) {
            return Err(field("duration", seconds, "a number of seconds"));
        }
        let n_frames = match (video.total_num_frames, &video.frames_indices) {
            // The list has only the chosen frames, so its length is not the number of frames of the video.
            (Some(total), Some(_)) if stated.is_list => total,
            (None, Some(_)) if stated.is_list => usize::MAX,
            (Some(total), None) if total != stated.n_frames => {
                let expected = format!("{}, the number of frames", stated.n_frames);
                return Err(field("total_num_frames", total, expected));
            }
            _ => stated.n_frames,
        };
        let limit = self.options.max_frames.map_or(MAX_FRAMES, usize::from);
        let check = |frames: usize| match frames > limit {
            true => Err(VideoError::TooManyFrames { video: video.to_string(), frames, limit }),
            false => Ok(()),
        };
        if let Some(indices) = &video.frames_indices {
            check(indices.len())?;
            if !indices.is_sorted_by(|before, after| before < after) {
                return Err(field("frames_indices", "not in order", "indices in ascending order"));
            }
            match indices.last() {
                None => return Err(VideoError::NoFrames { video: video.to_string() }),
                Some(&last) if last >= n_frames => {
                    return Err(field(
                        "frames_indices",
                        last,
                        format!("indices below {n_frames}, the number of frames"),
                    ));
                }
                Some(_) => {}
            }
            return Ok(SampledVideo { frames_indices: indices.clone(), fps, is_fps_assumed, duration });
        }
        // The reference requires a duration. Here, a missing duration is computed.
        let seconds = duration.unwrap_or(n_frames as f64 / fps);
        let sampling = VideoSampling {
            fps: self.options.target_fps.unwrap_or(self.sampling.fps),
            num_frames: self.options.num_frames.map_or(self.sampling.num_frames, usize::from),
        };
        if !(sampling.fps.is_finite() && sampling.fps > 0.0) {
            return Err(field("target_fps", sampling.fps, "a number of frames per second above 0"));
        }
        check(sampling.count(n_frames, fps, seconds))?;
        let frames_indices = sampling.frames_indices(n_frames, fps, seconds);
        Ok(SampledVideo { frames_indices, fps, is_fps_assumed, duration: Some(seconds) })
    }
}

fn field(field: &'static str, found: impl ToString, expected: impl Into<String>) -> VideoError {
    VideoError::Field { field, found: found.to_string(), expected: expected.into() }
}

/// Returns the path of a source that is a folder.
fn folder_of(source: &ImageSource) -> Option<PathBuf> {
    match source {
        ImageSource::Path(path) if path.is_dir() => Some(path.clone()),
        _ => None,
    }
}
