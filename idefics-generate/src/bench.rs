//! The measurements of `idefics bench`: the time of each stage of an answer. The measured code is the code that
//! generates answers.

mod clients;

use std::time::Instant;

use burn::tensor::{DType, Tensor};
use idefics_nn::profile::{Operation, Profiler};
use idefics_nn::{DeviceLease, KvCache, supports_graph_capture};
use idefics_processor::ProcessorError;
use idefics_processor::image::{ImageProcessor, ImageTile, RgbImage};
use idefics_processor::video::VideoError;
use serde::Serialize;

use crate::generation::CapturedStep;
use crate::pipeline::milliseconds;
use crate::{AssembledModel, EncodeStage, Error, ModelConfig, Prompts, SeenImages, VisionBatch};

pub use clients::{ClientsReport, Percentiles};

/// What to measure, and how often.
#[derive(Debug, Clone)]
pub struct BenchOptions<'a> {
    /// Width and height in pixels of each image in a row.
    pub images: Vec<(u32, u32)>,
    /// The videos in a row. Only families that read videos accept them.
    pub videos: Vec<BenchVideo>,
    /// Minimum number of tokens in the prompt, image tokens included. The prompt is longer if its images need more
    /// tokens.
    pub prompt_tokens: usize,
    /// Number of tokens to generate after the first. If this is 0, the reported decode times are 0.
    pub new_tokens: usize,
    /// Number of rows in the batch.
    pub batch: usize,
    /// Number of measurements of each stage except decoding, after one warm-up.
    pub runs: usize,
    /// Whether to run each stage once more and time each operation.
    pub profile: bool,
    /// Device lease for graph capture. If it is given, the decode step is captured and replayed on GPUs that support
    /// this.
    pub graph_capture: Option<&'a DeviceLease>,
    /// Number of images encoded at once.
    pub vision_batch: VisionBatch,
}

impl BenchOptions<'_> {
    /// Returns the size in bytes of the KV cache for these options, with f32 activations as on the CPU. `n_images` is
    /// the number of tiles of all images in a row.
    pub fn cache_bytes(&self, config: &ModelConfig, n_images: usize) -> u64 {
        let family = config.family();
        let (row, image_tokens) =
            (family.context_bytes(n_images, DType::F32), n_images * family.image_placeholder().len());
        let slots = self.prompt_tokens.max(1 + image_tokens).saturating_add(self.new_tokens).saturating_add(1);
        let slot = family.shape().text.cache_bytes(1, 1, DType::F32) as u64;
        (row as u64).saturating_add(slot.saturating_mul(slots as u64)).saturating_mul(self.batch as u64)
    }
}

/// The size of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchVideo {
    /// Width of a frame, in pixels.
    pub width: u32,
    /// Height of a frame, in pixels.
    pub height: u32,
    /// Number of frames that the vision tower encodes.
    pub frames: usize,
}

/// The processors that turn images and frames into tiles.
#[derive(Debug, Clone)]
pub struct BenchProcessors {
    images: ImageProcessor,
    /// `None` in families without videos.
    frames: Option<ImageProcessor>,
}

impl BenchProcessors {
    /// Creates the processors for a benchmark. `frames` is `None` in families without videos.
    pub fn new(images: ImageProcessor, frames: Option<ImageProcessor>) -> Self {
        Self { images, frames }
    }

    /// Returns whether a benchmark may have videos.
    pub fn reads_videos(&self) -> bool {
        self.frames.is_some()
    }

    /// Returns the number of tiles in a row: the tiles of its images and the frames of its videos. Without a processor
    /// for frames, videos count as 0 tiles.
    pub fn n_tiles(&self, options: &BenchOptions<'_>) -> usize {
        let images = options.images.iter().map(|&(width, height)| self.images.layout(width, height).tiles.len());
        let frames = self.frames.iter().flat_map(|processor| {
            let of_video = |video: &BenchVideo| video.frames * processor.layout(video.width, video.height).tiles.len();
            options.videos.iter().map(of_video)
        });
        images.chain(frames).sum()
    }
}

/// Distribution of the measurements of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spread {
    /// Minimum.
    pub min: f64,
    /// Median.
    pub median: f64,
    /// Maximum.
    pub max: f64,
}

impl Spread {
    /// Returns the distribution of `values`. All fields are 0 if `values` is empty.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }

    /// Returns the rates `amount / time` for a distribution of times. The maximum time gives the minimum rate.
    fn rate(self, amount: f64) -> Self {
        let rate = |value: f64| if value > 0.0 { amount / value } else { 0.0 };
        Self { min: rate(self.max), median: rate(self.median), max: rate(self.min) }
    }
}

/// Times of each stage, for all rows of the batch together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// Number of tiles that the vision tower encodes for all rows together. Each frame of a video is a tile.
    pub tiles: usize,
    /// Preprocessing images into tiles, in milliseconds.
    pub preprocess_ms: Spread,
    /// The vision tower, in milliseconds.
    pub vision_ms: Spread,
    /// The connector, in milliseconds.
    pub connector_ms: Spread,
    /// The decoder and the head on the prompt, in milliseconds.
    pub prefill_ms: Spread,
    /// Prompt tokens per second, of all rows.
    pub prefill_tokens_per_s: Spread,
    /// One decode step, in milliseconds. It is a replayed step if the step could be captured, as in a long answer.
    pub decode_ms_per_token: Spread,
    /// One eager decode step, in milliseconds, if `decode_ms_per_token` is the time of replayed steps. The difference
    /// between the two is the launch overhead, except for attention: a replayed step attends to the whole cache with a
    /// mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_launched_ms_per_token: Option<Spread>,
    /// Reason why no step was replayed although graph capture was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_refusal: Option<String>,
    /// Generated tokens per second, of all rows.
    pub decode_tokens_per_s: Spread,
    /// Bytes of weights read by one decode step.
    pub decode_bytes_per_token: usize,
    /// Dtype of unquantised matrices, spelt like the values of `--dtype`.
    pub dtype: String,
    /// Time of each operation in each stage; empty unless [`BenchOptions::profile`] is set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<StageProfile>,
}

/// The times of the operations in one run of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageProfile {
    /// Name, for example `vision tower`.
    pub stage: &'static str,
    /// Total seconds of the stage.
    pub seconds: f64,
    /// Operations with a kernel of this project, longest first. The rest of the time is spent in Burn's own operations.
    pub operations: Vec<Operation>,
}

impl StageProfile {
    /// Creates a profile of the operations that the profiler has counted since its last lap.
    fn of(stage: &'static str, profiler: &mut Profiler) -> Self {
        let mut all = Self::new(stage);
        all.add(profiler);
        all
    }

    /// Creates an empty profile.
    fn new(stage: &'static str) -> Self {
        Self { stage, seconds: 0.0, operations: Vec::new() }
    }

    /// Adds the operations that the profiler has counted since its last lap.
    fn add(&mut self, profiler: &mut Profiler) {
        let (seconds, operations) = profiler.lap();
        self.seconds += seconds;
        for more in operations {
            let is_same = |known: &&mut Operation| (known.name, known.unit) == (more.name, more.unit);
            match self.operations.iter_mut().find(is_same) {
                Some(known) => known.add(&more),
                None => self.operations.push(more),
            }
        }
        self.operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    }
}

impl ModelConfig {
    /// Measures each stage of `model`, which must have this configuration. Before each stage, calls `progress` with its
    /// name.
    ///
    /// # Errors
    /// [`Error`] if the prompts do not fit the model, the family reads no videos, or the device fails.
    pub fn bench(
        &self,
        model: &dyn AssembledModel,
        processors: &BenchProcessors,
        options: &BenchOptions<'_>,
        mut progress: impl FnMut(&'static str),
    ) -> Result<BenchReport, Error> {
        let finish = || model.device().sync().map_err(|error| Error::Execution { reason: format!("{error:?}") });
        let runs = options.runs.max(1);
        let row = self.pictures(processors, options)?;
        let all = std::iter::repeat_n(&row, options.batch).flatten();
        let all = all.flat_map(|(picture, count, processor)| std::iter::repeat_n((picture, *processor), *count));

        let mut profile = Vec::new();

        progress("preprocessing");
        let mut tiles: Vec<ImageTile> = Vec::new();
        let preprocess_ms = repeat(runs, || {
            tiles = all.clone().flat_map(|(picture, processor)| processor.process(picture)).collect();
            Ok(())
        })?;

        progress("vision tower and connector");
        let tiles: Vec<&ImageTile> = tiles.iter().collect();
        let mut image_hidden_states = None;
        let (mut vision_ms, mut connector_ms) = (Vec::new(), Vec::new());
        for run in 0..=runs {
            let (mut since, mut vision, mut connector) = (Instant::now(), 0.0, 0.0);
            image_hidden_states = model.encode_in_stages(&tiles, options.vision_batch, &mut |stage| {
                finish()?;
                match stage {
                    EncodeStage::Vision => vision += milliseconds(since),
                    EncodeStage::Connector => connector += milliseconds(since),
                }
                since = Instant::now();
                Ok(())
            })?;
            finish()?;
            if run > 0 {
                vision_ms.push(vision);
                connector_ms.push(connector + milliseconds(since)); // includes the reordering of the vectors
            }
        }
        if options.profile {
            let mut profiler = Profiler::start();
            let mut stages = [StageProfile::new("vision tower"), StageProfile::new("connector")];
            model.encode_in_stages(&tiles, options.vision_batch, &mut |stage| {
                finish()?;
                match stage {
                    EncodeStage::Vision => stages[0].add(&mut profiler),
                    EncodeStage::Connector => stages[1].add(&mut profiler),
                }
                Ok(())
            })?;
            finish()?;
            stages[1].add(&mut profiler);
            profile.extend(stages);
        }

        progress("prefill");
        let prompts = self.prompts(tiles.len() / options.batch, options)?;
        let mut cache = model.cache(&prompts, 0);
        let mut prefill = || {
            cache = model.cache(&prompts, options.new_tokens + 2); // 2 more steps: warm-up and profile
            model.prefill(&prompts, image_hidden_states.clone(), &mut cache)?;
            finish()
        };
        let prefill_ms = repeat(runs, &mut prefill)?;
        if options.profile {
            let mut profiler = Profiler::start();
            prefill()?;
            profile.push(StageProfile::of("prefill", &mut profiler));
        }

        progress("decode");
        let launched_ms = launched_times(model, &mut cache, options)?;
        let (replayed_ms, replay_refusal) = replayed_times(model, &mut cache, options)?;
        let decode_ms = replayed_ms.unwrap_or(launched_ms);
        if options.profile {
            let mut profiler = Profiler::start();
            model.decode(&vec![FILLER; options.batch], &mut cache)?;
            finish()?;
            profile.push(StageProfile::of("decode", &mut profiler));
        }
        let tokens = (options.batch * prompts.seq()) as f64;
        Ok(BenchReport {
            tiles: tiles.len(),
            preprocess_ms,
            vision_ms: Spread::of(vision_ms),
            connector_ms: Spread::of(connector_ms),
            prefill_ms,
            prefill_tokens_per_s: prefill_ms.rate(1e3 * tokens),
            decode_ms_per_token: decode_ms,
            decode_launched_ms_per_token: replayed_ms.map(|_| launched_ms),
            replay_refusal,
            decode_tokens_per_s: decode_ms.rate(1e3 * options.batch as f64),
            decode_bytes_per_token: self.decode_bytes(model, &cache),
            dtype: format!("{:?}", model.embedding_dtype()).to_lowercase(),
            profile,
        })
    }

    /// Returns the pictures of a row: images and frames of videos, each with the number of times that it occurs, and
    /// with its processor.
    ///
    /// # Errors
    /// [`Error::Processor`] if there are videos, but the family reads none.
    fn pictures<'p>(
        &self,
        processors: &'p BenchProcessors,
        options: &BenchOptions<'_>,
    ) -> Result<Vec<(RgbImage, usize, &'p ImageProcessor)>, Error> {
        let images = options.images.iter().map(|&(width, height)| (picture(width, height), 1, &processors.images));
        let mut row: Vec<_> = images.collect();
        if !options.videos.is_empty() {
            let family = self.family().model_type();
            let error = || ProcessorError::Videos { row: 0, error: VideoError::NotSupported { family } };
            let processor = processors.frames.as_ref().ok_or_else(error)?;
            let videos = options.videos.iter();
            row.extend(videos.map(|video| (picture(video.width, video.height), video.frames, processor)));
        }
        Ok(row)
    }

    /// Returns a batch of equal rows. Each row consists of filler tokens and the tokens of `n_images` images.
    fn prompts(&self, n_images: usize, options: &BenchOptions<'_>) -> Result<Prompts, Error> {
        let mut row = vec![FILLER];
        row.extend(self.family().image_placeholder().repeat(n_images));
        row.resize(row.len().max(options.prompt_tokens), FILLER);
        let prompts = Prompts::pad_left(&vec![row; options.batch], FILLER)?;
        if self.family().context_bytes(1, DType::F32) == 0 {
            return Ok(prompts);
        }
        // Every token attends to the last image.
        let slots = prompts.input_ids().len();
        let seen = (0..slots).flat_map(|_| (1..=n_images).map(|image| image == n_images)).collect();
        let seen = SeenImages::new(vec![n_images; options.batch], prompts.seq(), seen)?;
        Ok(prompts.with_seen_images(seen)?)
    }

    /// Returns the bytes of weights that the next decode step reads: those of the decoder and the head, but not the
    /// embedding table.
    fn decode_bytes(&self, model: &dyn AssembledModel, cache: &KvCache) -> usize {
        let sees_images =
            cache.context().is_some_and(|context| !context.seen(cache.len()..cache.len() + 1).sees_nothing());
        let mut sum = 0;
        model.weight_bytes_of_each(&mut |name, bytes| {
            sum += if self.family().is_read_by_step(name, sees_images) { bytes } else { 0 };
        });
        sum
    }
}

/// Measures eager decode steps and returns the milliseconds per step.
fn launched_times(
    model: &dyn AssembledModel,
    cache: &mut KvCache,
    options: &BenchOptions<'_>,
) -> Result<Spread, Error> {
    let next_tokens = vec![FILLER; options.batch];
    repeat(options.new_tokens, || finish_step(model.decode(&next_tokens, cache)?))
}

/// Measures replayed decode steps in the slots that the eager steps used. Returns the milliseconds per step, or the
/// reason why the step could not be captured. Both are `None` if graph capture was not requested or is not supported.
fn replayed_times(
    model: &dyn AssembledModel,
    cache: &mut KvCache,
    options: &BenchOptions<'_>,
) -> Result<(Option<Spread>, Option<String>), Error> {
    let Some(lease) =
        options.graph_capture.filter(|_| options.new_tokens > 0 && supports_graph_capture(&model.device()))
    else {
        return Ok((None, None));
    };
    let next_tokens = vec![FILLER; options.batch];
    let first = cache.len() - options.new_tokens - 1;
    cache.truncate(first + 1);
    let logits = model.decode(&next_tokens, cache)?;
    let recorded = CapturedStep::capture(model, lease, [&next_tokens, &next_tokens], &logits, cache);
    cache.truncate(first);
    let mut step = match recorded {
        Ok(step) => step,
        Err(reason) => return Ok((None, Some(reason))),
    };
    let times = repeat(options.new_tokens, || finish_step(step.run(&next_tokens, cache)?))?;
    Ok((Some(times), None))
}

/// Waits until the device has finished the step, by reading the next token back.
#[expect(clippy::disallowed_methods, reason = "the measurement ends with this read")]
fn finish_step(logits: Tensor<2>) -> Result<(), Error> {
    let read = logits.argmax(1).try_into_data();
    read.map(|_| ()).map_err(|error| Error::Execution { reason: format!("{error:?}") })
}

/// Id of the filler token. Every vocabulary has a token with this id.
pub(crate) const FILLER: u32 = 1;

/// Calls `work` once as a warm-up and then `runs` times. Returns the milliseconds of these `runs` calls.
fn repeat(runs: usize, mut work: impl FnMut() -> Result<(), Error>) -> Result<Spread, Error> {
    work()?;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let clock = Instant::now();
        work()?;
        times.push(milliseconds(clock));
    }
    Ok(Spread::of(times))
}

/// Creates a test picture without areas of a single colour.
fn picture(width: u32, height: u32) -> RgbImage {
    let pixel = |index: u32| [index % width, index / width, index].map(|value| (value.wrapping_mul(37) >> 2) as u8);
    RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).expect("every pixel has three bytes")
}
