//! Warm-up of a GPU: its kernels are compiled, and autotuned by measuring several variants.

use std::time::Instant;

use idefics_processor::{ProcessOptions, Sample};
use serde::Serialize;

use crate::pipeline::milliseconds;
use crate::{Controls, Error, GenerationConfig, GraphCapture, Idefics};

/// Durations of two runs with the same samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmUp {
    /// Duration of the first run in milliseconds. It includes compiling and autotuning kernels, unless an earlier run
    /// has stored the results. On the CPU, it includes reading the weights.
    pub first_ms: f64,
    /// Duration of the second run in milliseconds. Later runs take about as long.
    pub second_ms: f64,
}

impl Idefics {
    /// Answers samples twice. Later answers then need not wait for kernels if they have images of similar size, prompts
    /// of similar length and the same number of rows. Four new tokens per sample are enough. If later steps will be
    /// replayed, the options must request answers that are long enough for a capture. Clears the cache of image
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
