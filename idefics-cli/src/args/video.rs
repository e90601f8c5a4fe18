//! Options for tiles and videos.

use std::num::{NonZeroU64, NonZeroUsize};

use clap::Args;
use idefics_generate::processor::{ProcessOptions, VideoOptions};

use super::positive;

/// Options for the tiles of images and the frames of videos.
#[derive(Debug, Clone, Args)]
pub(super) struct VideoArgs {
    /// Encode only whole images and no parts of them; the same as --do-image-splitting false.
    #[arg(long, conflicts_with = "do_image_splitting", help_heading = "Preprocessing")]
    no_image_splitting: bool,
    /// Maximum number of tiles of an image [default: 100].
    #[arg(long, value_name = "N", help_heading = "Preprocessing", value_parser = positive::<NonZeroU64>)]
    max_tiles: Option<NonZeroU64>,
    /// Frames per second of folders and lists of frames whose rate is not given, for example --video-fps 10 [default:
    /// 24].
    #[arg(long, value_name = "R", help_heading = "Videos", value_parser = rate)]
    video_fps: Option<f64>,
    /// Frames per second to show to the model, for example --video-fps-target 0.5 for a frame every two seconds
    /// [default: the model folder's].
    #[arg(long, value_name = "R", help_heading = "Videos", value_parser = rate)]
    video_fps_target: Option<f64>,
    /// Maximum number of frames to show to the model, evenly spaced, for example --video-frames 16 [default: the model
    /// folder's].
    #[arg(long, value_name = "N", help_heading = "Videos", value_parser = positive::<NonZeroUsize>)]
    video_frames: Option<NonZeroUsize>,
    /// Reject videos if more than N frames of them would be shown [default: 512].
    #[arg(long, value_name = "N", help_heading = "Videos", value_parser = positive::<NonZeroUsize>)]
    max_frames: Option<NonZeroUsize>,
}

/// Parses a number of frames per second.
fn rate(text: &str) -> Result<f64, &'static str> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or("expected a number of frames per second above 0")
}

impl VideoArgs {
    /// Returns `process` with these options added.
    pub(super) fn over(&self, process: ProcessOptions) -> ProcessOptions {
        let mut video = VideoOptions::default();
        video.native_fps = self.video_fps;
        video.target_fps = self.video_fps_target;
        video.num_frames = self.video_frames;
        video.max_frames = self.max_frames;
        ProcessOptions {
            do_image_splitting: if self.no_image_splitting { Some(false) } else { process.do_image_splitting },
            max_tiles: self.max_tiles.map(u64::from).or(process.max_tiles),
            video,
            ..process
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[arg(long)]
        do_image_splitting: Option<bool>,
        #[command(flatten)]
        video: VideoArgs,
    }

    fn options(line: &[&str]) -> Result<ProcessOptions, clap::Error> {
        let line = Line::try_parse_from([&["idefics"], line].concat())?;
        let do_image_splitting = line.do_image_splitting;
        Ok(line.video.over(ProcessOptions { do_image_splitting, ..ProcessOptions::default() }))
    }

    #[test]
    fn each_option_sets_its_field() {
        let unset = options(&["--do-image-splitting", "true"]).unwrap();
        assert_eq!((unset.do_image_splitting, unset.max_tiles), (Some(true), None));
        assert_eq!(unset.video, VideoOptions::default());
        let set = ["--no-image-splitting", "--max-tiles", "9", "--video-fps", "10", "--video-fps-target", "0.5"];
        let set = options(&[&set[..], &["--video-frames", "16", "--max-frames", "600"]].concat()).unwrap();
        assert_eq!((set.do_image_splitting, set.max_tiles), (Some(false), Some(9)));
        assert_eq!((set.video.native_fps, set.video.target_fps), (Some(10.0), Some(0.5)));
        assert_eq!((set.video.num_frames, set.video.max_frames), (NonZeroUsize::new(16), NonZeroUsize::new(600)));
        assert!(options(&["--no-image-splitting", "--do-image-splitting", "true"]).is_err());
        for refused in ["0", "-1", "NaN", "inf", "fast"] {
            assert!(options(&[&format!("--video-fps={refused}")]).is_err(), "{refused}");
        }
        assert!(options(&["--video-frames", "0"]).is_err());
    }
}
