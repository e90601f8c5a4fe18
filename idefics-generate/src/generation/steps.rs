//! Decode steps of rows that grow by one token each: launched one operation after the other, or replayed once the device
//! has recorded a step.

use burn::tensor::Tensor;
use idefics_nn::{DeviceLease, KvCache, Replay, can_record};

use super::Replays;
use super::logprobs::read;
use crate::inputs::check_ids;
use crate::{Error, Model};

/// Steps before one is recorded, and that must be left then: recording costs as much as a few, which a short answer would
/// not earn back.
const LONG: usize = 8;

/// Normalised mean square error up to which a replay's logits are those of the launched step.
const TRUSTED: f32 = 1e-3;

/// A recorded step of a cache.
#[derive(Debug)]
pub(crate) struct ReplayedStep<'a> {
    model: &'a dyn Model,
    replay: Replay<'a, 2>,
}

impl<'a> ReplayedStep<'a> {
    /// Records the step of the tokens in the cache's last slot but one, and has it compute that of the `newest`, which gave
    /// `logits`. The cache holds what it held, but for the rounding of these two slots, and takes its memory once more
    /// meanwhile. Else says in a line why there is no such step.
    ///
    /// While it is there, the cache grows by [`Self::run`] alone.
    pub(crate) fn record(
        model: &'a dyn Model,
        lease: &'a DeviceLease,
        [before, newest]: [&[u32]; 2],
        logits: &Tensor<2>,
        cache: &mut KvCache,
    ) -> Result<Self, String> {
        let mut spare = None;
        let recorded = Self::record_beside(model, lease, before, cache, &mut spare).and_then(|mut step| {
            let error = step.error(newest, logits, cache.len() - 1)?;
            // NaN is refused too.
            if error <= TRUSTED { Ok(step) } else { Err(format!("its logits differ by {error:.1e} of their square")) }
        });
        if let (Err(_), Some(spare)) = (&recorded, spare) {
            *cache = spare; // what a step wrote that failed or went wrong
        }
        recorded
    }

    /// Records the step and puts a copy of what it writes to into `spare`.
    fn record_beside(
        model: &'a dyn Model,
        lease: &'a DeviceLease,
        tokens: &[u32],
        cache: &KvCache,
        spare: &mut Option<KvCache>,
    ) -> Result<Self, String> {
        let inputs = [&ids(tokens)[..], &[(cache.len() - 2) as i32]];
        let replay = Replay::record(inputs, &model.device(), lease, |inputs| {
            let step = model.slot_step(inputs, cache)?;
            *spare = Some(cache.copied());
            Some(step)
        });
        let replay = replay.map_err(|error| in_a_line(&error))?;
        Ok(Self { model, replay: replay.ok_or("the model or its device records none")? })
    }

    /// [`Model::decode`] of the next tokens. The logits are good until the next call.
    pub(crate) fn run(&mut self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, Error> {
        check_ids(next_tokens, 1, self.model.shape().vocab_size)?;
        let slot = cache.len();
        cache.note_written();
        self.run_at(next_tokens, slot).map_err(|reason| Error::Execution { reason })
    }

    /// The logits behind tokens in a slot of the cache, which are written there.
    fn run_at(&mut self, tokens: &[u32], slot: usize) -> Result<Tensor<2>, String> {
        self.replay.run([&ids(tokens), &[slot as i32]]).map_err(|error| in_a_line(&error))
    }

    /// The mean square error of the logits behind these tokens, normalised by the mean square of `logits`.
    fn error(&mut self, tokens: &[u32], logits: &Tensor<2>, slot: usize) -> Result<f32, String> {
        let replayed = self.run_at(tokens, slot)?;
        let squares = [replayed - logits.clone(), logits.clone()].map(|values| values.square().sum());
        let sums = read(Tensor::cat(squares.into(), 0)).map_err(|error| error.to_string())?;
        Ok(sums[0] / sums[1])
    }
}

/// What an error says, without where it came from.
fn in_a_line(error: &impl ToString) -> String {
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

/// How the steps of a generation are computed.
#[derive(Debug)]
pub(super) enum Steps<'a> {
    /// One operation after the other: `n_steps` so far, the last of the tokens `last`. A step is recorded once there are
    /// `wait` before it, if there is room for as many more.
    Launched { lease: &'a DeviceLease, wait: usize, n_steps: usize, last: Vec<u32> },
    /// One operation after the other to the end; why, if a step was to be recorded.
    AlwaysLaunched { reason: Option<String> },
    /// As they were recorded.
    Replayed(Box<ReplayedStep<'a>>),
}

impl<'a> Steps<'a> {
    /// Nothing recorded yet.
    pub(super) fn new(replays: Replays<'a>, model: &dyn Model) -> Self {
        let (lease, wait) = match replays {
            _ if !can_record(&model.device()) => return Self::AlwaysLaunched { reason: None },
            Replays::Never => return Self::AlwaysLaunched { reason: None },
            Replays::WhenLong(lease) => (lease, LONG),
            Replays::AtOnce(lease) => (lease, 1),
        };
        Self::Launched { lease, wait, n_steps: 0, last: Vec::new() }
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
        if let Self::Launched { lease, wait, n_steps, last } = self {
            let (before, left) = (*n_steps, cache.capacity() - cache.len());
            *n_steps += 1;
            // The step before is recorded, so that this one's tokens and slot have to reach it.
            if before >= *wait && left >= *wait {
                *self = match ReplayedStep::record(model, lease, [last, next_tokens], &logits, cache) {
                    Ok(step) => Self::Replayed(Box::new(step)),
                    Err(reason) => Self::AlwaysLaunched { reason: Some(reason) },
                };
            } else {
                next_tokens.clone_into(last);
            }
        }
        Ok(logits)
    }
}
