//! What a GPU does once: its kernels are compiled, and the fastest of several chosen by measuring them.

use std::time::Instant;

use idefics_processor::{ProcessOptions, Sample};
use serde::Serialize;

use crate::pipeline::milliseconds;
use crate::{Controls, Error, GenerationConfig, Idefics, Replays};

/// How long the same answers took twice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmUp {
    /// With kernels that had to be compiled and chosen, unless an earlier run has done that; on the CPU with weights that
    /// had to be read, in milliseconds.
    pub first_ms: f64,
    /// What the same takes from then on, in milliseconds.
    pub second_ms: f64,
}

impl Idefics {
    /// Begins answers to samples as those to come, twice, so that no later answer waits for kernels: those of pictures
    /// of about these sizes, of prompts of about this length and of as many rows; four tokens of each are enough. If steps
    /// are to be replayed, an answer of that length has one recorded. Image tokens that are kept are forgotten.
    ///
    /// # Errors
    /// As [`Idefics::generate`].
    pub fn warm_up(
        &self,
        samples: &[Sample],
        process: &ProcessOptions,
        options: &GenerationConfig,
        replays: Replays<'_>,
    ) -> Result<WarmUp, Error> {
        let pass = || {
            self.forget_features();
            let clock = Instant::now();
            self.generate(samples, process, options, Controls { replays, ..Controls::default() })?;
            Ok::<_, Error>(milliseconds(clock))
        };
        Ok(WarmUp { first_ms: pass()?, second_ms: pass()? })
    }
}
