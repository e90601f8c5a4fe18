//! What `idefics bench` measures: the stages of an answer, on the code that answers.

use std::time::Instant;

use burn::tensor::{DType, Tensor};
use idefics_nn::profile::{Operation, Profiler};
use idefics_nn::{DeviceLease, KvCache, can_record};
use idefics_processor::image::{ImageProcessor, ImageTile, RgbImage};
use serde::Serialize;

use crate::generation::ReplayedStep;
use crate::pipeline::milliseconds;
use crate::{AssembledModel, EncodeStage, Error, ModelConfig, Prompts, SeenImages, VisionBatch};

/// What an answer is about, and how often it is measured.
#[derive(Debug, Clone)]
pub struct BenchOptions<'a> {
    /// Width and height of the images of a row, in pixels.
    pub images: Vec<(u32, u32)>,
    /// Tokens of the prompt, image tokens included; at least as many as the images need.
    pub prompt_tokens: usize,
    /// Tokens to generate after the first; without any, steps take no time.
    pub new_tokens: usize,
    /// Rows.
    pub batch: usize,
    /// Times that each stage is measured, after one that does not count.
    pub runs: usize,
    /// Whether each stage runs once more with the time of each operation.
    pub profile: bool,
    /// Has a GPU record a decode step and replay it, with a lease.
    pub replays: Option<&'a DeviceLease>,
    /// How many images are encoded together.
    pub vision_batch: VisionBatch,
}

impl BenchOptions<'_> {
    /// Bytes of KV cache that a model of that shape takes on the CPU, whose activations are f32, with `n_images` tiles of all
    /// its images.
    pub fn cache_bytes(&self, config: &ModelConfig, n_images: usize) -> u64 {
        let family = config.family();
        let (row, image_tokens) =
            (family.context_bytes(n_images, DType::F32), n_images * family.image_placeholder().len());
        let slots = self.prompt_tokens.max(1 + image_tokens).saturating_add(self.new_tokens).saturating_add(1);
        let slot = family.shape().text.cache_bytes(1, 1, DType::F32) as u64;
        (row as u64).saturating_add(slot.saturating_mul(slots as u64)).saturating_mul(self.batch as u64)
    }
}

/// Measurements of one stage.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spread {
    /// The fastest.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The slowest.
    pub max: f64,
}

impl Spread {
    /// Of one measurement or more; zeros of none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }

    /// `amount / self`, the fastest giving the largest.
    fn rate(self, amount: f64) -> Self {
        let rate = |value: f64| if value > 0.0 { amount / value } else { 0.0 };
        Self { min: rate(self.max), median: rate(self.median), max: rate(self.min) }
    }
}

/// Times of each stage, for all rows together.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// Pictures to tiles, in milliseconds.
    pub preprocess_ms: Spread,
    /// The vision tower, in milliseconds.
    pub vision_ms: Spread,
    /// The connector, in milliseconds.
    pub connector_ms: Spread,
    /// The prompt through the decoder and the head, in milliseconds.
    pub prefill_ms: Spread,
    /// Tokens of all rows through it.
    pub prefill_tokens_per_s: Spread,
    /// One step, in milliseconds: a replayed one where the device has recorded it, as in a longer answer.
    pub decode_ms_per_token: Spread,
    /// The same with operations launched one after the other, in milliseconds, where steps are replayed: what is more is
    /// what launches cost, but for attention, which a replayed step has over the whole cache with a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_launched_ms_per_token: Option<Spread>,
    /// Why no step is replayed although one was to be recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_refusal: Option<String>,
    /// Tokens of all rows.
    pub decode_tokens_per_s: Spread,
    /// Bytes of weights that one step reads.
    pub decode_bytes_per_token: usize,
    /// The dtype of matrices that are not quantised, as `--dtype` spells it.
    pub dtype: String,
    /// What the operations of each stage take, if that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<StageProfile>,
}

/// One run of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageProfile {
    /// `vision tower`
    pub stage: &'static str,
    /// All of it.
    pub seconds: f64,
    /// Those with a kernel, the longest first; the rest of the time is Burn's own operations.
    pub operations: Vec<Operation>,
}

impl StageProfile {
    /// What the profiler counted since its last lap.
    fn of(stage: &'static str, profiler: &mut Profiler) -> Self {
        let mut all = Self::new(stage);
        all.add(profiler);
        all
    }

    /// Nothing yet.
    fn new(stage: &'static str) -> Self {
        Self { stage, seconds: 0.0, operations: Vec::new() }
    }

    /// Adds what the profiler counted since its last lap.
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
    /// Measures each stage of `model`, which is of this configuration.
    ///
    /// # Errors
    /// [`Error`] for prompts that do not fit the model, or a device that fails.
    pub fn bench(
        &self,
        model: &dyn AssembledModel,
        processor: &ImageProcessor,
        options: &BenchOptions<'_>,
        mut progress: impl FnMut(&'static str),
    ) -> Result<BenchReport, Error> {
        let finish = || model.device().sync().map_err(|error| Error::Execution { reason: format!("{error:?}") });
        let pictures: Vec<RgbImage> = options.images.iter().map(|&(width, height)| picture(width, height)).collect();
        let all = std::iter::repeat_n(&pictures, options.batch).flatten();
        let runs = options.runs.max(1);

        let mut profile = Vec::new();

        progress("preprocessing");
        let mut tiles: Vec<ImageTile> = Vec::new();
        let preprocess_ms = repeat(runs, || {
            tiles = all.clone().flat_map(|picture| processor.process(picture)).collect();
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
                connector_ms.push(connector + milliseconds(since)); // what puts them in order
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
            cache = model.cache(&prompts, options.new_tokens + 2); // a step that does not count, and one for the profile
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

    /// Rows of words with `n_images` images each.
    fn prompts(&self, n_images: usize, options: &BenchOptions<'_>) -> Result<Prompts, Error> {
        let mut row = vec![FILLER];
        row.extend(self.family().image_placeholder().repeat(n_images));
        row.resize(row.len().max(options.prompt_tokens), FILLER);
        let prompts = Prompts::pad_left(&vec![row; options.batch], FILLER)?;
        if self.family().context_bytes(1, DType::F32) == 0 {
            return Ok(prompts);
        }
        // Every token sees the last image.
        let slots = prompts.input_ids().len();
        let seen = (0..slots).flat_map(|_| (1..=n_images).map(|image| image == n_images)).collect();
        let seen = SeenImages::new(vec![n_images; options.batch], prompts.seq(), seen)?;
        Ok(prompts.with_seen_images(seen)?)
    }

    /// Bytes of weights that a step behind `cache` reads: those of the decoder and the head, not the embedding table.
    fn decode_bytes(&self, model: &dyn AssembledModel, cache: &KvCache) -> usize {
        let sees_images = cache.context().is_some_and(|context| !context.seen(cache.len()..cache.len() + 1).is_blind());
        let mut sum = 0;
        model.weight_bytes_of_each(&mut |name, bytes| {
            sum += if self.family().is_read_by_step(name, sees_images) { bytes } else { 0 };
        });
        sum
    }
}

/// Milliseconds of steps that are launched one operation at a time.
fn launched_times(
    model: &dyn AssembledModel,
    cache: &mut KvCache,
    options: &BenchOptions<'_>,
) -> Result<Spread, Error> {
    let next_tokens = vec![FILLER; options.batch];
    repeat(options.new_tokens, || finish_step(model.decode(&next_tokens, cache)?))
}

/// Milliseconds of the same steps once more, replayed, if they are to be, or why they are not.
fn replayed_times(
    model: &dyn AssembledModel,
    cache: &mut KvCache,
    options: &BenchOptions<'_>,
) -> Result<(Option<Spread>, Option<String>), Error> {
    let Some(lease) = options.replays.filter(|_| options.new_tokens > 0 && can_record(&model.device())) else {
        return Ok((None, None));
    };
    let next_tokens = vec![FILLER; options.batch];
    let first = cache.len() - options.new_tokens - 1;
    cache.truncate(first + 1);
    let logits = model.decode(&next_tokens, cache)?;
    let recorded = ReplayedStep::record(model, lease, [&next_tokens, &next_tokens], &logits, cache);
    cache.truncate(first);
    let mut step = match recorded {
        Ok(step) => step,
        Err(reason) => return Ok((None, Some(reason))),
    };
    let times = repeat(options.new_tokens, || finish_step(step.run(&next_tokens, cache)?))?;
    Ok((Some(times), None))
}

/// A step ends when its token is read.
#[expect(clippy::disallowed_methods, reason = "what is measured ends here")]
fn finish_step(logits: Tensor<2>) -> Result<(), Error> {
    let read = logits.argmax(1).try_into_data();
    read.map(|_| ()).map_err(|error| Error::Execution { reason: format!("{error:?}") })
}

/// A token that every vocabulary has.
pub(crate) const FILLER: u32 = 1;

/// Milliseconds of each of `runs` calls, after one that does not count.
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

/// A picture with something everywhere.
fn picture(width: u32, height: u32) -> RgbImage {
    let pixel = |index: u32| [index % width, index / width, index].map(|value| (value.wrapping_mul(37) >> 2) as u8);
    RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).expect("there is a byte a channel")
}
