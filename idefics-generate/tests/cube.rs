//! Graph capture on the best GPU of the enabled backends. Replayed steps are compared with eager steps. On a machine
//! without a GPU, `.ci/software-vulkan` provides a software device. It requires WGSL, that is, the feature `wgpu`
//! without `vulkan`.

#![allow(clippy::unwrap_used)] // also in helper functions

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor};
use idefics_generate::nn::{KvCache, Step};
use idefics_generate::processor::{Content, Sample};
use idefics_generate::text::DecoderStack;
use idefics_generate::{
    CancelToken, Controls, Conversation, DeviceChoice, DeviceLease, FinishReason, Generation, GenerationConfig,
    GraphCapture, Idefics, ImageBatch, ImageVectors, InputError, Model, ModelShape, OneOrMany, Precision, Prompts,
    StepwiseEncoder,
};
use serde_json::{Value, json};

/// Number of tokens in an answer: enough for a step to be captured and replayed.
const N_TOKENS: usize = 40;

fn gpu() -> Device {
    let choice = if cfg!(feature = "cuda") {
        DeviceChoice::Cuda(0)
    } else if cfg!(feature = "vulkan") {
        DeviceChoice::Vulkan(0)
    } else {
        DeviceChoice::Wgpu(0)
    };
    choice.open().unwrap().1
}

fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}

fn image(name: &str) -> String {
    xtask_folder("cases/two-images/images").join(name).to_str().unwrap().to_owned()
}

/// A checkpoint, and three prompts for it: with one image, with none, and with two.
struct Subject {
    checkpoint: &'static str,
    rows: Value,
    model: Idefics,
}

impl Subject {
    fn idefics2(checkpoint: &'static str, dtype: DType) -> Self {
        let rows = json!([
            {"text": "User: What is this?<image>", "images": [image("small.png")]},
            {"text": "User: Hello", "images": []},
            {"text": "<image>and<image>", "images": [image("wide.png"), image("tall.png")]},
        ]);
        Self::new(checkpoint, rows, dtype)
    }

    /// Creates a subject for IDEFICS v1, whose prompts are lists of texts and images.
    fn idefics1() -> Self {
        let rows = json!([
            {"prompt": ["User: What is this?", {"image": image("small.png")}]},
            {"prompt": ["User: Hello"]},
            {"prompt": [{"image": image("wide.png")}, "and", {"image": image("tall.png")}]},
        ]);
        Self::new("idefics1-float", rows, DType::F32)
    }

    fn new(checkpoint: &'static str, rows: Value, dtype: DType) -> Self {
        let folder = xtask_folder("checkpoints").join(checkpoint);
        Self { checkpoint, rows, model: Idefics::from_folder(&folder, &gpu(), dtype, |_| ()).unwrap() }
    }

    /// Starts a generation for the first `n_rows` rows.
    fn start<'m>(&'m self, n_rows: usize, options: &GenerationConfig, controls: Controls<'m>) -> Generation<'m> {
        self.start_with(self.model.model(), n_rows, options, controls)
    }

    /// Starts a generation like [`Self::start`], but with another model.
    fn start_with<'m>(
        &self,
        model: &'m dyn Model,
        n_rows: usize,
        options: &GenerationConfig,
        controls: Controls<'m>,
    ) -> Generation<'m> {
        let rows = self.rows.as_array().unwrap()[..n_rows].to_vec();
        let samples: Vec<Sample> = serde_json::from_value(rows.into()).unwrap();
        let processed = self.model.processor().process(&samples, &Default::default()).unwrap();
        let mut prompts = Prompts::pad_left(&processed.input_ids, 0).unwrap();
        if self.checkpoint.starts_with("idefics1") {
            let tokenizer = self.model.processor().tokenizer();
            prompts = prompts.attend_to_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id());
        }
        let images: Vec<_> = processed.images.into_iter().flatten().collect();
        let features = model.encode_images(&images).unwrap();
        Generation::start(model, &prompts, features, options, controls).unwrap()
    }
}

/// Creates a lease for the test's thread.
#[allow(unsafe_code, reason = "a promise about all other threads")]
fn lease() -> DeviceLease {
    // SAFETY: GPU tests run one at a time, with `--test-threads=1`.
    unsafe { DeviceLease::for_this_thread() }
}

fn controls(graph_capture: GraphCapture<'_>) -> Controls<'_> {
    Controls { logprobs: Some(0), graph_capture, ..Controls::default() }
}

/// Options for answers of [`N_TOKENS`] tokens that may end earlier only at one of `end_tokens`.
fn options(end_tokens: &[u32]) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(N_TOKENS),
        min_new_tokens: end_tokens.is_empty().then_some(N_TOKENS),
        eos_token_id: (!end_tokens.is_empty()).then(|| OneOrMany::Many(end_tokens.to_vec())),
        pad_token_id: Some(0),
        ..GenerationConfig::default()
    }
}

fn finish(generation: &mut Generation<'_>) {
    while generation.step().unwrap().is_some() {}
}

/// Asserts that both generations have the same tokens with the same log-probabilities.
fn assert_same(launched: &Generation<'_>, replayed: &Generation<'_>, what: &str) {
    assert!(!launched.uses_captured_graph() && launched.replay_refusal().is_none(), "{what}");
    assert!(replayed.uses_captured_graph(), "{what}: {:?}", replayed.replay_refusal());
    assert_eq!(launched.sequences(), replayed.sequences(), "{what}");
    for row in 0..launched.sequences().len() {
        let pairs = launched.logprobs(row).iter().zip(replayed.logprobs(row));
        let apart = pairs.map(|(left, right)| (left.token.logprob - right.token.logprob).abs());
        assert!(apart.fold(0.0, f32::max) <= 1e-5, "{what}, row {row}");
    }
}

#[test]
fn replayed_steps_match_eager_steps() {
    let mut subjects = vec![
        Subject::idefics2("odd-heads", DType::F32),
        Subject::idefics2("sliding-sharded", DType::F32),
        Subject::idefics1(),
    ];
    let supported = Precision::supported(&gpu());
    for (precision, dtype) in [(Precision::F16, DType::F16), (Precision::Bf16, DType::BF16)] {
        if supported.contains(&precision) {
            subjects.push(Subject::idefics2("odd-heads", dtype));
        }
    }
    let lease = lease();
    for subject in &subjects {
        for n_rows in [3, 1] {
            let [launched, replayed] = [GraphCapture::Never, GraphCapture::WhenLong(&lease)].map(|graph_capture| {
                let mut generation = subject.start(n_rows, &options(&[]), controls(graph_capture));
                finish(&mut generation);
                generation
            });
            assert_same(&launched, &replayed, subject.checkpoint);
        }
    }
}

#[test]
fn rows_may_finish_before_and_after_capture() {
    let subject = Subject::idefics2("odd-heads", DType::F32);
    let mut whole = subject.start(3, &options(&[]), controls(GraphCapture::Never));
    finish(&mut whole);
    // These end tokens end some rows before the others.
    let ends = [whole.generated(0)[4], whole.generated(1)[20]];
    let lease = lease();
    let [launched, replayed] = [GraphCapture::Never, GraphCapture::AtOnce(&lease)].map(|graph_capture| {
        let mut generation = subject.start(3, &options(&ends), controls(graph_capture));
        finish(&mut generation);
        generation
    });
    assert_same(&launched, &replayed, "rows that finish");
    assert_ne!(launched.generated(0).len(), launched.generated(2).len());
}

#[test]
fn replayed_generation_can_be_cancelled() {
    let subject = Subject::idefics2("odd-heads", DType::F32);
    let mut launched = subject.start(1, &options(&[]), controls(GraphCapture::Never));
    finish(&mut launched);

    let cancel = CancelToken::default();
    let lease = lease();
    let controls = Controls { cancel: cancel.clone(), ..controls(GraphCapture::AtOnce(&lease)) };
    let mut cancelled = subject.start(1, &options(&[]), controls);
    for _ in 0..10 {
        cancelled.step().unwrap();
    }
    cancel.cancel();
    assert!(cancelled.step().unwrap().is_none() && cancelled.uses_captured_graph());
    assert_eq!(cancelled.finish_reason(0), Some(FinishReason::Cancelled));
    assert_eq!(cancelled.generated(0), &launched.generated(0)[..10]);
}

/// A model with a fault in the step that is captured.
#[derive(Debug)]
struct Faulty<'m> {
    model: &'m dyn Model,
    fault: Fault,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The step processes token 7 instead of the given token, and writes the keys and values of token 7 to the cache.
    OtherToken,
    /// The step uploads data, so that it cannot be captured.
    Upload,
}

impl Model for Faulty<'_> {
    fn slot_step<'s>(&'s self, [next_tokens, slot]: &[Tensor<1, Int>; 2], cache: &KvCache) -> Option<Step<'s>> {
        match self.fault {
            Fault::OtherToken => self.model.slot_step(&[next_tokens.zeros_like() + 7, slot.clone()], cache),
            Fault::Upload => {
                let mut step = self.model.slot_step(&[next_tokens.clone(), slot.clone()], cache)?;
                let device = self.model.device();
                let step = move || step.run() + Tensor::<2>::from_data([[0.0]], &device);
                // SAFETY: a step must not upload data, so this one breaks the contract. It is never replayed, because
                // the devices on which this fault is tested (all but CUDA) refuse to capture an upload.
                #[allow(unsafe_code, reason = "the step is one that the device must refuse")]
                Some(unsafe { Step::new(step) })
            }
        }
    }

    fn shape(&self) -> &ModelShape {
        self.model.shape()
    }

    fn vision(&self, images: &ImageBatch<'_>) -> Result<Box<dyn StepwiseEncoder + '_>, InputError> {
        self.model.vision(images)
    }

    fn begin(
        &self,
        prompts: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        cache: &mut KvCache,
    ) -> Result<Tensor<3>, InputError> {
        self.model.begin(prompts, image_hidden_states, cache)
    }

    fn decoder(&self) -> &dyn DecoderStack {
        self.model.decoder()
    }

    fn logits(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        self.model.logits(hidden_states)
    }
}

#[test]
fn faulty_or_rejected_capture_does_not_change_answers() {
    let subject = Subject::idefics2("odd-heads", DType::F32);
    let mut launched = subject.start(3, &options(&[]), controls(GraphCapture::Never));
    finish(&mut launched);
    let mut faults = vec![Fault::OtherToken];
    if cfg!(not(feature = "cuda")) {
        faults.push(Fault::Upload); // CUDA would capture the upload
    }
    let lease = lease();
    for fault in faults {
        let model = Faulty { model: subject.model.model(), fault };
        let mut generation = subject.start_with(&model, 3, &options(&[]), controls(GraphCapture::WhenLong(&lease)));
        finish(&mut generation);
        let reason = generation.replay_refusal().unwrap();
        assert!(
            !generation.uses_captured_graph() && !reason.is_empty() && !reason.contains('\n'),
            "{fault:?}: {reason}"
        );
        assert_eq!(generation.sequences(), launched.sequences(), "{fault:?}");
    }
}

#[test]
fn conversation_continues_after_replayed_steps() {
    let subject = Subject::idefics2("odd-heads", DType::F32);
    let lease = lease();
    let answers = [GraphCapture::Never, GraphCapture::AtOnce(&lease)].map(|graph_capture| {
        let mut conversation = Conversation::new(&subject.model, Default::default());
        ["What is this?", "And then?", "Why?"].map(|question| {
            let content = vec![Content::text(question)];
            let options = GenerationConfig { min_new_tokens: Some(12), max_new_tokens: Some(12), ..Default::default() };
            conversation.ask(content, &options, controls(graph_capture), |_| ()).unwrap().token_ids
        })
    });
    assert_eq!(answers[0], answers[1]);
}
