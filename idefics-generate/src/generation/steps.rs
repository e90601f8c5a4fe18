//! Decode steps of rows that grow by one token per step: eager, or replayed once a step has been captured.

use burn::tensor::Tensor;
use idefics_nn::{CapturedGraph, DeviceLease, KvCache, supports_graph_capture};

use super::GraphCapture;
use super::logprobs::read;
use crate::inputs::check_ids;
use crate::{Error, Model};

/// Minimum number of steps before a capture, and of steps that must remain after it. Capturing costs as much as a
/// few steps, which would not pay off in a short answer.
const MIN_STEPS: usize = 8;

/// Maximum normalised mean square error between the logits of a replay and of the eager step.
const MAX_ERROR: f32 = 1e-3;

/// A captured decode step for a cache.
#[derive(Debug)]
pub(crate) struct CapturedStep<'a> {
    model: &'a dyn Model,
    graph: CapturedGraph<'a, 2>,
}

impl<'a> CapturedStep<'a> {
    /// Captures the decode step at the cache's last slot but one, with the tokens `before`, then replays it for
    /// the `newest` tokens and compares the result with `logits`, the eager ones. The cache keeps its contents, up
    /// to rounding in these two slots, and temporarily needs twice its memory. On failure, returns the reason as a
    /// single line.
    ///
    /// While the captured step exists, the cache must grow only by [`Self::run`].
    pub(crate) fn capture(
        model: &'a dyn Model,
        lease: &'a DeviceLease,
        [before, newest]: [&[u32]; 2],
        logits: &Tensor<2>,
        cache: &mut KvCache,
    ) -> Result<Self, String> {
        let mut spare = None;
        let captured = Self::capture_with_spare(model, lease, before, cache, &mut spare).and_then(|mut step| {
            let error = step.error(newest, logits, cache.len() - 1)?;
            // Also false for NaN.
            if error <= MAX_ERROR {
                Ok(step)
            } else {
                Err(format!("the replayed logits differ from the eager ones (normalised error {error:.1e})"))
            }
        });
        if let (Err(_), Some(spare)) = (&captured, spare) {
            *cache = spare; // undo what a failed or wrong step wrote
        }
        captured
    }

    /// Captures the step, and puts a copy of the cache that it writes to into `spare`.
    fn capture_with_spare(
        model: &'a dyn Model,
        lease: &'a DeviceLease,
        tokens: &[u32],
        cache: &KvCache,
        spare: &mut Option<KvCache>,
    ) -> Result<Self, String> {
        let inputs = [&ids(tokens)[..], &[(cache.len() - 2) as i32]];
        let graph = CapturedGraph::capture(inputs, &model.device(), lease, |inputs| {
            let step = model.slot_step(inputs, cache)?;
            *spare = Some(cache.copied());
            Some(step)
        });
        let graph = graph.map_err(|error| single_line(&error))?;
        Ok(Self { model, graph: graph.ok_or("the model or its device does not support graph capture")? })
    }

    /// [`Model::decode`] for the next tokens. The logits are valid until the next call.
    pub(crate) fn run(&mut self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, Error> {
        check_ids(next_tokens, 1, self.model.shape().vocab_size)?;
        let slot = cache.len();
        cache.mark_slot_written();
        self.run_at(next_tokens, slot).map_err(|reason| Error::Execution { reason })
    }

    /// Replays the step for tokens at a slot of the cache; returns their logits.
    fn run_at(&mut self, tokens: &[u32], slot: usize) -> Result<Tensor<2>, String> {
        self.graph.run([&ids(tokens), &[slot as i32]]).map_err(|error| single_line(&error))
    }

    /// The mean square error of the replayed logits, divided by the mean square of `logits`.
    fn error(&mut self, tokens: &[u32], logits: &Tensor<2>, slot: usize) -> Result<f32, String> {
        let replayed = self.run_at(tokens, slot)?;
        let squares = [replayed - logits.clone(), logits.clone()].map(|values| values.square().sum());
        let sums = read(Tensor::cat(squares.into(), 0)).map_err(|error| error.to_string())?;
        Ok(sums[0] / sums[1])
    }
}

/// An error message as a single line, without its backtrace.
fn single_line(error: &impl ToString) -> String {
    let text = error.to_string();
    let said =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).take_while(|line| !line.ends_with("acktrace:"));
    let causes: Vec<&str> =
        said.filter(|line| *line != "Caused by:" && *line != "An error happened during execution").collect();
    causes.join(": ")
}

fn ids(tokens: &[u32]) -> Vec<i32> {
    tokens.iter().map(|&id| id as i32).collect()
}

/// How the decode steps of a generation are computed.
#[derive(Debug)]
pub(super) enum Steps<'a> {
    /// Eagerly until the capture. `n_steps` steps have run, the last one with the tokens `last`. A step is
    /// captured once `wait` steps have run, if at least as many slots are left.
    Eager { lease: &'a DeviceLease, wait: usize, n_steps: usize, last: Vec<u32> },
    /// Eagerly to the end. `reason` says why, if a capture was requested.
    AlwaysEager { reason: Option<String> },
    /// By replaying the captured step.
    Replayed(Box<CapturedStep<'a>>),
}

impl<'a> Steps<'a> {
    /// Starts without a captured step.
    pub(super) fn new(graph_capture: GraphCapture<'a>, model: &dyn Model) -> Self {
        let (lease, wait) = match graph_capture {
            _ if !supports_graph_capture(&model.device()) => return Self::AlwaysEager { reason: None },
            GraphCapture::Never => return Self::AlwaysEager { reason: None },
            GraphCapture::WhenLong(lease) => (lease, MIN_STEPS),
            GraphCapture::AtOnce(lease) => (lease, 1),
        };
        Self::Eager { lease, wait, n_steps: 0, last: Vec::new() }
    }

    /// [`Model::decode`].
    pub(super) fn decode(
        &mut self,
        model: &'a dyn Model,
        next_tokens: &[u32],
        cache: &mut KvCache,
    ) -> Result<Tensor<2>, Error> {
        if let Self::Replayed(step) = self {
            return step.run(next_tokens, cache);
        }
        let logits = model.decode(next_tokens, cache)?;
        if let Self::Eager { lease, wait, n_steps, last } = self {
            let (before, left) = (*n_steps, cache.capacity() - cache.len());
            *n_steps += 1;
            // The previous step is captured, to check that a replay uses its new inputs: this step's tokens and
            // slot.
            if before >= *wait && left >= *wait {
                *self = match CapturedStep::capture(model, lease, [last, next_tokens], &logits, cache) {
                    Ok(step) => Self::Replayed(Box::new(step)),
                    Err(reason) => Self::AlwaysEager { reason: Some(reason) },
                };
            } else {
                next_tokens.clone_into(last);
            }
        }
        Ok(logits)
    }
}
