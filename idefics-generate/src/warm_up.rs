//! Warm-up of a GPU: compiles kernels, and autotunes them by measuring several variants.

use std::time::Instant;

use idefics_processor::{ProcessOptions, Sample};
use serde::Serialize;

use crate::pipeline::milliseconds;
use crate::{Controls, Error, GenerationConfig, GraphCapture, Idefics};

/// Duration of two runs with the same samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmUp {
    /// First run, in milliseconds: includes compiling and autotuning kernels, unless an earlier run has stored the
    /// results; on the CPU it includes reading the weights.
    pub first_ms: f64,
    /// Second run, in milliseconds: the duration from then on.
    pub second_ms: f64,
}

impl Idefics {
    /// Answers samples twice, so that later answers with images of similar size, prompts of similar length and the
    /// same number of rows need not wait for kernels. Four new tokens per sample are enough. If steps should be
    /// replayed, the options must request an answer that is long enough for a capture. Clears the cache of image
    /// vectors.
    ///
    /// # Errors
    /// Those of [`Idefics::generate`].
    pub fn warm_up(
        &self,
        samples: &[Sample],
        process: &ProcessOptions,
        options: &GenerationConfig,
        graph_capture: GraphCapture<'_>,
    ) -> Result<WarmUp, Error> {
        let pass = || {
            self.forget_features();
            let clock = Instant::now();
            self.generate(samples, process, options, Controls { graph_capture, ..Controls::default() })?;
            Ok::<_, Error>(milliseconds(clock))
        };
        Ok(WarmUp { first_ms: pass()?, second_ms: pass()? })
    }
}
