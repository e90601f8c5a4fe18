//! Decode steps of rows that grow by one token per step. A step runs eagerly, or a captured step is replayed.

use burn::tensor::Tensor;
use idefics_nn::{CapturedGraph, DeviceLease, KvCache, supports_graph_capture};

use super::GraphCapture;
use super::logprobs::read;
use crate::inputs::check_ids;
use crate::{Error, Model};

/// Minimum number of steps before a capture, and of steps that must still be possible after it. A capture takes as long
/// as a few steps, so it would not pay off in a short answer.
const MIN_STEPS: usize = 8;

/// Maximum error of the logits of a replayed step: their mean square error divided by the mean square of the eager
/// step's logits.
const MAX_ERROR: f32 = 1e-3;

/// A captured decode step for a cache.
#[derive(Debug)]
pub(crate) struct CapturedStep<'a> {
    model: &'a dyn Model,
    graph: CapturedGraph<'a, 2>,
}

impl<'a> CapturedStep<'a> {
    /// Captures the previous decode step, which wrote the tokens `before` to the last slot but one. To check the
    /// capture, replays it for the last slot with the tokens `newest` and compares the result with `logits`, which an
    /// eager step computed. The keys and values of these two slots are written again, with rounding differences. The
    /// cache temporarily needs twice its memory. On failure, returns the reason as a single line.
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
            // The comparison is false for NaN, so NaN is an error.
            if error <= MAX_ERROR {
                Ok(step)
            } else {
                Err(format!("the logits of the replayed and the eager step differ (normalised error {error:.1e})"))
            }
        });
        if let (Err(_), Some(spare)) = (&captured, spare) {
            *cache = spare; // undo what a failed or wrong step wrote
        }
        captured
    }

    /// Captures the step. Puts a copy of the cache into `spare` before the step writes to the cache for the first time.
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

    /// Replays the step for the next tokens. The result is the same as that of [`Model::decode`]. The logits are valid
    /// until the next call.
    pub(crate) fn run(&mut self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, Error> {
        check_ids(next_tokens, 1, self.model.shape().vocab_size)?;
        let slot = cache.len();
        cache.mark_slot_written();
        self.run_at(next_tokens, slot).map_err(|reason| Error::Execution { reason })
    }

    /// Replays the step for the given tokens at a slot of the cache. Returns their logits.
    fn run_at(&mut self, tokens: &[u32], slot: usize) -> Result<Tensor<2>, String> {
        self.graph.run([&ids(tokens), &[slot as i32]]).map_err(|error| single_line(&error))
    }

    /// Replays the step and returns the mean square error of its logits, divided by the mean square of `logits`.
    fn error(&mut self, tokens: &[u32], logits: &Tensor<2>, slot: usize) -> Result<f32, String> {
        let replayed = self.run_at(tokens, slot)?;
        let squares = [replayed - logits.clone(), logits.clone()].map(|values| values.square().sum());
        let sums = read(Tensor::cat(squares.into(), 0)).map_err(|error| error.to_string())?;
        Ok(sums[0] / sums[1])
    }
}

/// Joins the lines of an error message to a single line, without its backtrace.
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
    /// Steps run eagerly until one is captured. `n_steps` steps have run, the last one with the tokens `last`. The
    /// capture happens once `wait` steps have run, if at least `wait` more slots are free.
    Eager { lease: &'a DeviceLease, wait: usize, n_steps: usize, last: Vec<u32> },
    /// All steps run eagerly. `reason` says why, if a capture was requested.
    AlwaysEager { reason: Option<String> },
    /// The captured step is replayed.
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

    /// Computes [`Model::decode`], and captures the step when it is time.
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
            // The previous step is captured and then replayed for this step's tokens and slot, to check that a replay
            // uses new inputs.
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
