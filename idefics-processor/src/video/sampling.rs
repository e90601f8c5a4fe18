//! Which frames of a video are shown to the model.

/// How many frames are sampled.
///
/// Source: `SmolVLMVideoProcessor.sample_frames`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoSampling {
    /// Frames per second to sample.
    pub fps: f64,
    /// Maximum number of frames.
    pub num_frames: usize,
}

/// The frames of a video that became tiles.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SampledVideo {
    /// Index of each frame in the video.
    pub frames_indices: Vec<usize>,
    /// Frames per second of the video.
    pub fps: f64,
    /// Whether the rate is stated nowhere, so that `fps` is [`Self::DEFAULT_FPS`].
    pub is_fps_assumed: bool,
    /// Length of the video in seconds, if known.
    pub duration: Option<f64>,
}

impl SampledVideo {
    /// Frames per second of a video without a stated rate.
    ///
    /// Source: `SmolVLMProcessor.replace_video_token`.
    pub const DEFAULT_FPS: f64 = 24.0;

    /// Returns the time of each frame, in seconds.
    pub fn timestamps(&self) -> impl DoubleEndedIterator<Item = f64> {
        self.frames_indices.iter().map(|&index| index as f64 / self.fps)
    }
}

/// Seconds that are skipped at each end of a long video.
const SKIP_SECONDS: f64 = 1.0;

impl VideoSampling {
    /// Returns the number of indices that [`Self::frames_indices`] returns, without computing the indices.
    pub fn count(&self, n_frames: usize, fps: f64, duration: f64) -> usize {
        let Plan { start, end, count } = self.plan(n_frames, fps, duration);
        count.min(end - start + 1)
    }

    /// Returns the ascending indices of the frames to show, for a video of `n_frames` frames (at least 1) with `fps`
    /// frames per second and `duration` seconds.
    ///
    /// The frames are evenly spaced, from the first frame to the last. At each end of a long video, one second is
    /// skipped.
    pub fn frames_indices(&self, n_frames: usize, fps: f64, duration: f64) -> Vec<usize> {
        let Plan { start, end, count } = self.plan(n_frames, fps, duration);
        if count > end - start {
            return (start..=end).collect();
        }
        if count == 1 {
            return vec![start];
        }
        // Rounds like `numpy.linspace`, whose last value is exact.
        let step = (end - start) as f64 / (count - 1) as f64;
        let value = |at: usize| (at as f64 * step + start as f64).floor() as usize;
        let mut indices: Vec<usize> = (0..count - 1).map(value).chain([end]).collect();
        indices.dedup();
        indices
    }

    fn plan(&self, n_frames: usize, fps: f64, duration: f64) -> Plan {
        // The cast turns a float that is too large into the largest `usize`, and NaN into 0.
        let count = ((self.fps * duration).round_ties_even() as usize).min(self.num_frames).max(1);
        let last = n_frames.saturating_sub(1);
        let (mut start, mut end) = (0, last);
        if duration - 2.0 * SKIP_SECONDS > self.num_frames as f64 * self.fps {
            start = (SKIP_SECONDS * fps) as usize;
            end = ((n_frames as f64 - SKIP_SECONDS * fps) as usize).min(last);
        }
        if start >= end {
            (start, end) = (0, last);
        }
        Plan { start, end, count }
    }
}

/// The frames to choose from, `start` to `end` (both included), and the maximum number of frames, `count`.
struct Plan {
    start: usize,
    end: usize,
    count: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A case recorded from the reference: (number of frames, frames per second), `num_frames`, the number of indices,
    /// and some pairs of position and index.
    type Row = ((usize, f64), usize, usize, &'static [(usize, usize)]);

    #[test]
    fn indices_match_the_reference() {
        let rows: [Row; 9] = [
            ((1980, 30.0), 64, 64, &[(0, 0), (1, 31), (2, 62), (62, 1947), (63, 1979)]),
            ((2010, 30.0), 64, 64, &[(0, 30), (1, 60), (2, 91), (62, 1949), (63, 1980)]),
            ((300, 30.0), 64, 10, &[(0, 0), (1, 33), (4, 132), (5, 166), (8, 265), (9, 299)]),
            ((250, 25.0), 4, 4, &[(0, 25), (1, 91), (2, 158), (3, 225)]),
            ((900, 24.0), 8, 8, &[(0, 24), (1, 145), (2, 267), (3, 389), (4, 510), (5, 632), (6, 754), (7, 876)]),
            ((16, 3.0), 64, 5, &[(0, 0), (1, 3), (2, 7), (3, 11), (4, 15)]),
            ((45, 30.0), 64, 2, &[(0, 0), (1, 44)]),
            ((75, 30.0), 64, 2, &[(0, 0), (1, 74)]),
            ((5, 25.0), 64, 1, &[(0, 0)]),
        ];
        for ((n_frames, fps), num_frames, count, expected) in rows {
            let sampling = VideoSampling { fps: 1.0, num_frames };
            let indices = sampling.frames_indices(n_frames, fps, n_frames as f64 / fps);
            assert_eq!(indices.len(), count, "{n_frames} frames at {fps}");
            for &(at, index) in expected {
                assert_eq!(indices[at], index, "{n_frames} frames at {fps}, position {at}");
            }
        }
        let sampling = VideoSampling { fps: 1.0, num_frames: 64 };
        assert_eq!(sampling.frames_indices(90, 10.0, 9.0), [0, 11, 22, 33, 44, 55, 66, 77, 89]);
    }

    proptest! {
        #[test]
        fn indices_ascend_and_lie_in_the_video(
            n_frames in 1_usize..5000,
            num_frames in 1_usize..700,
            fps in prop_oneof![0.01_f64..300.0, Just(f64::MIN_POSITIVE), Just(1e300)],
            target in prop_oneof![0.01_f64..60.0, Just(1e300)],
            duration in prop_oneof![0.0_f64..1e5, Just(f64::MAX), Just(0.0)],
        ) {
            let sampling = VideoSampling { fps: target, num_frames };
            let indices = sampling.frames_indices(n_frames, fps, duration);
            prop_assert!(!indices.is_empty() && indices.len() <= num_frames.min(n_frames));
            prop_assert!(indices.is_sorted_by(|before, after| before < after));
            prop_assert!(indices[indices.len() - 1] < n_frames);
            prop_assert_eq!(indices.len(), sampling.count(n_frames, fps, duration));
        }
    }
}
