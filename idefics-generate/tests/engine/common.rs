//! Random requests, and how they are run.

use std::path::Path;

use burn::tensor::Device;
use idefics_generate::engine::{Engine, EngineOptions, Event, Prompt, Request, Ticket};
use idefics_generate::logits::{LogitsProcessor, Row};
use idefics_generate::processor::image::ImageTile;
use idefics_generate::{
    Controls, Error, FinishReason, GeneratedLogprob, Generation, GenerationConfig, Idefics, Prompts, WeightOptions,
};
use serde_json::{Value, json};

use crate::common::{load, no_splitting, picture, xtask_folder};

/// Tokens per chunk: the smallest number that is allowed.
pub(crate) const CHUNK: usize = 64;

/// A small deterministic generator of random numbers (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Everything that a request consists of.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) ids: Vec<u32>,
    pub(crate) images: Vec<ImageTile>,
    pub(crate) tile_tokens: Vec<usize>,
    pub(crate) options: GenerationConfig,
    pub(crate) seed: u64,
}

/// An answer of a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Answered {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<GeneratedLogprob>,
    pub(crate) finish: Option<FinishReason>,
}

/// In the step after the first `after` tokens, allows only the token `id`. If `id` is `None`, sets a score to NaN in
/// that step instead.
#[derive(Debug)]
pub(crate) struct Force {
    pub(crate) after: usize,
    pub(crate) id: Option<u32>,
}

impl LogitsProcessor for Force {
    fn process(&mut self, row: &Row<'_>, scores: &mut [f32]) {
        if row.n_generated() == self.after {
            match self.id {
                Some(id) => {
                    scores.fill(f32::NEG_INFINITY);
                    scores[id as usize] = 0.0;
                }
                None => scores[0] = f32::NAN,
            }
        }
    }
}

pub(crate) struct Fixture {
    pub(crate) model: Idefics,
    has_context: bool,
}

impl Fixture {
    pub(crate) fn new(checkpoint: &str) -> Self {
        Self { model: load(checkpoint), has_context: checkpoint.starts_with("idefics1") }
    }

    pub(crate) fn with_weights(checkpoint: &str, weights: WeightOptions) -> Self {
        let has_context = checkpoint.starts_with("idefics1");
        Self { has_context, ..Self::of_folder(&xtask_folder("checkpoints").join(checkpoint), weights) }
    }

    /// Loads a model whose images are part of the token sequence.
    pub(crate) fn of_folder(folder: &Path, weights: WeightOptions) -> Self {
        let model = Idefics::from_folder(folder, &Device::flex(), weights, |_| ()).unwrap();
        Self { model, has_context: false }
    }

    fn image_token_id(&self) -> u32 {
        self.model.processor().tokenizer().image_token_id()
    }

    /// Returns the prompt as a batch of one row.
    pub(crate) fn prompts(&self, case: &Case) -> Prompts {
        let prompts = Prompts::pad_left(std::slice::from_ref(&case.ids), 0).unwrap();
        match self.has_context {
            true => prompts.attend_to_latest_images(self.image_token_id(), Some(2)),
            false => prompts,
        }
    }

    pub(crate) fn request(&self, case: &Case) -> Request<'_> {
        let (images, tile_tokens) = (case.images.clone(), &case.tile_tokens);
        let prompt = Prompt::of_row(&self.prompts(case), 0, images, tile_tokens, self.image_token_id()).unwrap();
        let tokenizer = Some(self.model.processor().tokenizer());
        Request { seed: case.seed, tokenizer, logprobs: Some(2), ..Request::new(prompt, case.options.clone()) }
    }

    /// Returns an ordinary token that is neither special nor an image token.
    pub(crate) fn token(&self, random: &mut Random) -> u32 {
        let vocab_size = self.model.model().shape().vocab_size.min(400);
        loop {
            let id = 10 + random.below(vocab_size - 10) as u32;
            if id != self.image_token_id() {
                return id;
            }
        }
    }

    /// Returns a prompt of 1 to about `3 · CHUNK` tokens with up to three images.
    pub(crate) fn case(&self, random: &mut Random) -> Case {
        let n_images = [0, 0, 1, 1, 2, 3][random.below(6)];
        let names = ["small.png", "wide.png", "tall.png"];
        let images: Vec<String> = (0..n_images).map(|_| picture(names[random.below(3)])).collect();
        let mut case = self.prompt_with(&images);
        let mut ids: Vec<u32> = (0..random.below(2 * CHUNK)).map(|_| self.token(random)).collect();
        ids.append(&mut case.ids);
        ids.extend((0..1 + random.below(CHUNK)).map(|_| self.token(random)));
        Case { ids, options: self.options(random), seed: random.next(), ..case }
    }

    /// Returns a prompt that consists of images. In IDEFICS v1, it begins with the text `User:`.
    pub(crate) fn prompt_with(&self, images: &[String]) -> Case {
        let options = GenerationConfig::default();
        if images.is_empty() {
            return Case { ids: Vec::new(), images: Vec::new(), tile_tokens: Vec::new(), options, seed: 0 };
        }
        let sample = match self.has_context {
            true => {
                let images = images.iter().map(|path| json!({"image": path}));
                let prompt: Vec<Value> = [json!("User:")].into_iter().chain(images).collect();
                json!({"prompt": prompt})
            }
            false => json!({"text": "<image>".repeat(images.len()), "images": images}),
        };
        let sample = serde_json::from_value(sample).unwrap();
        let mut inputs = self.model.processor().process(&[sample], &no_splitting()).unwrap();
        Case {
            ids: inputs.input_ids.remove(0),
            images: inputs.images.remove(0),
            tile_tokens: inputs.tile_tokens.remove(0),
            options,
            seed: 0,
        }
    }

    fn options(&self, random: &mut Random) -> GenerationConfig {
        let max_new_tokens = 1 + random.below(12);
        let mut options = json!({"max_new_tokens": max_new_tokens, "eos_token_id": [2, self.token(random)]});
        match random.below(4) {
            0 => options["repetition_penalty"] = json!(1.3),
            1 => options["min_new_tokens"] = json!(random.below(max_new_tokens + 1)),
            2 => options["bad_words_ids"] = json!([[self.token(random)], [self.token(random), self.token(random)]]),
            _ => {}
        }
        if random.below(4) == 0 {
            let piece = self.model.processor().tokenizer().decode(&[self.token(random)], true).unwrap();
            options["stop_strings"] = json!([if piece.trim().is_empty() { "e" } else { piece.trim() }]);
        }
        if random.below(2) == 0 {
            options["do_sample"] = json!(true);
            options["temperature"] = json!(0.5 + random.below(4) as f64 / 2.0);
            options["top_k"] = json!([0, 5, 50][random.below(3)]);
            options["num_return_sequences"] = json!([1, 1, 2, 3][random.below(4)]);
        }
        serde_json::from_value(options).unwrap()
    }

    /// Answers a request with a [`Generation`].
    pub(crate) fn generation(&self, case: &Case) -> Vec<Answered> {
        let model = self.model.model();
        let features = model.encode_images(&case.images).unwrap();
        let tokenizer = Some(self.model.processor().tokenizer());
        let controls = Controls { seed: case.seed, tokenizer, logprobs: Some(2), ..Controls::default() };
        let mut generation = Generation::start(model, &self.prompts(case), features, &case.options, controls).unwrap();
        while generation.step().unwrap().is_some() {}
        let answered = |row| Answered {
            tokens: generation.generated(row).to_vec(),
            logprobs: generation.logprobs(row).to_vec(),
            finish: generation.finish_reason(row),
        };
        (0..generation.answers_per_sample()).map(answered).collect()
    }

    /// Answers a request with an engine of its own.
    pub(crate) fn alone(&self, case: &Case) -> Vec<Answered> {
        self.alone_with(case, engine_options())
    }

    /// Answers a request with an engine of its own that has these options.
    pub(crate) fn alone_with(&self, case: &Case, options: EngineOptions) -> Vec<Answered> {
        let mut engine = Engine::of(&self.model, options).unwrap();
        let ticket = engine.submit(self.request(case)).unwrap();
        while engine.step().unwrap() {}
        collect(&ticket).unwrap()
    }
}

pub(crate) fn engine_options() -> EngineOptions {
    EngineOptions { chunk_tokens: CHUNK, isolates_panics: true, ..EngineOptions::offline(96, 8) }
}

/// Reads all events of a request that has ended. Checks that they are in order.
pub(crate) fn collect(ticket: &Ticket) -> Result<Vec<Answered>, Error> {
    let mut answers: Vec<Answered> = Vec::new();
    while let Some(event) = ticket.try_next() {
        match event {
            Event::Tokens { answer, tokens, logprobs } => {
                answers.resize(answers.len().max(answer + 1), Answered::default());
                assert_eq!(answers[answer].finish, None, "tokens after the end of the answer");
                answers[answer].tokens.extend(tokens);
                answers[answer].logprobs.extend(logprobs);
            }
            Event::AnswerEnd { answer, reason } => {
                answers.resize(answers.len().max(answer + 1), Answered::default());
                assert_eq!(answers[answer].finish.replace(reason), None, "the answer ended twice");
            }
            Event::End { usage } => {
                assert!(ticket.try_next().is_none(), "an event after the end");
                assert_eq!(usage.completion_tokens, answers.iter().map(|answer| answer.tokens.len()).sum::<usize>());
                assert!(answers.iter().all(|answer| answer.finish.is_some()));
                return Ok(answers);
            }
            Event::Failed(error) => {
                assert!(ticket.try_next().is_none(), "an event after the end");
                return Err(error);
            }
            _ => {}
        }
    }
    panic!("the request has not ended");
}
