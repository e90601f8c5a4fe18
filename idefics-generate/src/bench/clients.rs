//! Several clients at once: the throughput of the engine, and how long a client waits for its tokens.

use std::time::{Duration, Instant};

use idefics_processor::image::ImageTile;
use serde::Serialize;

use super::{BenchOptions, BenchProcessors, Spread};
use crate::engine::{Engine, EngineOptions, Event, Prompt, Request, Speculation, Ticket};
use crate::{AssembledModel, EosTokenId, Error, GenerationConfig, ModelConfig};

/// The measurements for a number of clients. Each client asks one question at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClientsReport {
    /// Number of clients.
    pub clients: usize,
    /// Generated tokens per second of all clients together. The time includes running the prompts.
    pub tokens_per_s: Spread,
    /// Time from the question to the first token, in milliseconds.
    pub first_token_ms: Percentiles,
    /// Time between two tokens of an answer, in milliseconds.
    pub inter_token_ms: Percentiles,
}

/// Percentiles of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// The value that one measurement in 100 exceeds.
    pub p99: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get((share * values.len() as f64) as usize).or(values.last()).copied();
        Self { p50: at(0.5).unwrap_or(0.0), p99: at(0.99).unwrap_or(0.0) }
    }
}

impl ModelConfig {
    /// Measures the engine with each number of clients. Each client asks [`BenchOptions::runs`] questions with the
    /// images and lengths of `options`, after one warm-up. Nothing is shared between prompts. Calls `progress` with
    /// each number of clients before measuring it.
    ///
    /// # Errors
    /// [`Error`] if the prompts do not fit the model, or the device fails.
    pub fn bench_clients(
        &self,
        model: &dyn AssembledModel,
        processors: &BenchProcessors,
        options: &BenchOptions<'_>,
        clients: &[usize],
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<ClientsReport>, Error> {
        let tiles: Vec<ImageTile> = self
            .pictures(processors, options)?
            .iter()
            .flat_map(|(picture, count, processor)| std::iter::repeat_n((picture, *processor), *count))
            .flat_map(|(picture, processor)| processor.process(picture))
            .collect();
        let placeholder = self.family().image_placeholder();
        let tile_tokens = vec![placeholder.len(); tiles.len()];
        let prompts = self.prompts(tiles.len(), &BenchOptions { batch: 1, ..options.clone() })?;
        // Without images, no token of the prompt is an image token.
        let image_token_id = placeholder.first().filter(|_| !tiles.is_empty()).copied().unwrap_or(u32::MAX);
        let prompt = Prompt::of_row(&prompts, 0, tiles, &tile_tokens, image_token_id)?;
        let answer = GenerationConfig {
            max_new_tokens: Some(options.new_tokens.max(1)),
            eos_token_id: Some(EosTokenId::Many(Vec::new())),
            ..GenerationConfig::default()
        };
        let measure = |&n: &usize| {
            progress(n);
            let pages = n * EngineOptions::pages_of(prompt.ids().len(), options.new_tokens.max(1), 1);
            // A model with random weights repeats itself, so unusually many proposals would be right.
            let speculation = Speculation::Off;
            let mut settings = EngineOptions { prefix_cache: false, speculation, ..EngineOptions::new(pages) };
            settings.policy.max_batch = n;
            settings.policy.max_queue = n;
            settings.policy.max_queue_tokens = u64::MAX;
            settings.policy.queue_timeout = u64::MAX;
            let mut engine = Engine::new(model, settings)?;
            let request = || Request::new(prompt.clone(), answer.clone());
            round(&mut engine, n, request)?; // warm-up
            let rounds = (0..options.runs.max(1)).map(|_| round(&mut engine, n, request));
            let rounds = rounds.collect::<Result<Vec<Round>, Error>>()?;
            let all =
                |values: fn(&Round) -> &Vec<f64>| Percentiles::of(rounds.iter().flat_map(values).copied().collect());
            Ok(ClientsReport {
                clients: n,
                tokens_per_s: Spread::of(rounds.iter().map(|round| round.tokens_per_s).collect()),
                first_token_ms: all(|round| &round.first),
                inter_token_ms: all(|round| &round.between),
            })
        };
        clients.iter().map(measure).collect()
    }
}

/// The measurements of one round, in which each client asks one question.
struct Round {
    tokens_per_s: f64,
    /// Time to the first token of each client, in milliseconds.
    first: Vec<f64>,
    /// Times between tokens of all clients, in milliseconds.
    between: Vec<f64>,
}

/// Lets `clients` clients ask a question each, all at the same time.
fn round<'m>(engine: &mut Engine<'m>, clients: usize, request: impl Fn() -> Request<'m>) -> Result<Round, Error> {
    let start = Instant::now();
    let mut tickets: Vec<(Ticket, Instant, bool)> =
        (0..clients).map(|_| Ok((engine.submit(request())?, start, false))).collect::<Result<_, Error>>()?;
    let mut round = Round { tokens_per_s: 0.0, first: Vec::new(), between: Vec::new() };
    let mut n_tokens = 0;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    while engine.step()? {
        let now = Instant::now();
        for (ticket, last, has_begun) in &mut tickets {
            while let Some(event) = ticket.try_next() {
                match event {
                    Event::Tokens { tokens, .. } => {
                        n_tokens += tokens.len();
                        let times = if *has_begun { &mut round.between } else { &mut round.first };
                        times.push(milliseconds(now - *last));
                        (*last, *has_begun) = (now, true);
                    }
                    Event::Failed(error) => return Err(error),
                    _ => {}
                }
            }
        }
    }
    round.tokens_per_s = n_tokens as f64 / start.elapsed().as_secs_f64();
    Ok(round)
}
