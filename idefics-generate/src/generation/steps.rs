//! Decode steps of rows that grow by one token each: launched one operation at a time, and replayed as one command once
//! the device has recorded a step.

use burn::tensor::Tensor;
use idefics_nn::{KvCache, Replay, can_record};

use super::logprobs::read;
use crate::inputs::check_ids;
use crate::{Error, Model};

/// Steps before one is recorded, which costs as much as a few: a short answer would not earn them back.
const RECORD_AFTER: usize = 8;

/// Normalised mean square error up to which a replay's logits are those of the launched step.
const TRUSTED: f32 = 1e-3;

/// A recorded step of a cache.
#[derive(Debug)]
pub(crate) struct ReplayedStep<'a> {
    model: &'a dyn Model,
    replay: Replay<'a, 2>,
}

impl<'a> ReplayedStep<'a> {
    /// Records the step of these tokens, which are in that slot of the cache already: nothing in it changes. `None` where
    /// it cannot be recorded. The cache takes its memory once more meanwhile, for a device that fails half-way.
    ///
    /// While the step is there, the cache grows by [`Self::run`] alone.
    pub(crate) fn record(model: &'a dyn Model, tokens: &[u32], slot: usize, cache: &mut KvCache) -> Option<Self> {
        let device = model.device();
        if !can_record(&device) {
            return None;
        }
        let spare = cache.copied();
        let inputs = [&ids(tokens)[..], &[slot as i32]];
        match Replay::record(inputs, &device, |inputs| model.slot_step(inputs, cache)) {
            Ok(replay) => Some(Self { model, replay: replay? }),
            Err(_) => {
                *cache = spare; // what the step was to write to is lost
                None
            }
        }
    }

    /// [`Model::decode`] of the next tokens. The logits are good until the next call.
    pub(crate) fn run(&mut self, next_tokens: &[u32], cache: &mut KvCache) -> Result<Tensor<2>, Error> {
        check_ids(next_tokens, 1, self.model.vocab_size())?;
        let slot = cache.len();
        cache.note_written();
        self.run_at(next_tokens, slot)
    }

    /// The logits behind tokens in a slot of the cache, which are written there.
    fn run_at(&mut self, tokens: &[u32], slot: usize) -> Result<Tensor<2>, Error> {
        let logits = self.replay.run([&ids(tokens), &[slot as i32]]);
        logits.map_err(|error| Error::Execution { reason: format!("{error:?}") })
    }

    /// Whether the step gives these logits, which were computed another way, behind tokens that are in that slot.
    pub(crate) fn agrees(&mut self, tokens: &[u32], slot: usize, logits: &Tensor<2>) -> Result<bool, Error> {
        let replayed = self.run_at(tokens, slot)?;
        let error = (replayed - logits.clone()).square().sum();
        let sums = read(Tensor::cat(vec![error, logits.clone().square().sum()], 0))?;
        Ok(sums[0] <= TRUSTED * sums[1])
    }
}

fn ids(tokens: &[u32]) -> Vec<i32> {
    tokens.iter().map(|&id| id as i32).collect()
}

/// How the steps of a generation are computed.
#[derive(Debug)]
pub(super) enum Steps<'a> {
    /// One operation at a time; so many were, and the last was of these tokens.
    Launched { n_steps: usize, last: Vec<u32> },
    /// One operation at a time to the end.
    AlwaysLaunched,
    /// As one command.
    Replayed(Box<ReplayedStep<'a>>),
}

impl<'a> Steps<'a> {
    /// Nothing recorded yet.
    pub(super) fn new(may_replay: bool) -> Self {
        if may_replay { Self::Launched { n_steps: 0, last: Vec::new() } } else { Self::AlwaysLaunched }
    }

    /// [`Model::decode`].
    pub(super) fn decode(
        &mut self,
        model: &'a dyn Model,
        next_tokens: &[u32],
        cache: &mut KvCache,
    ) -> Result<Tensor<2>, Error> {
        let (n_steps, last) = match self {
            Self::Replayed(step) => return step.run(next_tokens, cache),
            Self::AlwaysLaunched => return Ok(model.decode(next_tokens, cache)?),
            Self::Launched { n_steps, last } => (n_steps, last),
        };
        let slot = cache.len();
        let logits = model.decode(next_tokens, cache)?;
        *n_steps += 1;
        if *n_steps > RECORD_AFTER && cache.capacity() - cache.len() > RECORD_AFTER {
            // The step before is recorded, so that this one's tokens and slot have to reach it.
            let mut recorded = ReplayedStep::record(model, last, slot - 1, cache);
            let agrees = match &mut recorded {
                Some(step) => step.agrees(next_tokens, slot, &logits)?,
                None => false,
            };
            *self = match recorded {
                Some(step) if agrees => Self::Replayed(Box::new(step)),
                _ => Self::AlwaysLaunched,
            };
        } else {
            next_tokens.clone_into(last);
        }
        Ok(logits)
    }
}
