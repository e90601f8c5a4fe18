//! Learning-rate schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warm-up. Names and formulas are those of `get_scheduler` in Transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// Stays constant.
    Constant,
    /// Decays linearly to zero.
    #[default]
    Linear,
    /// Decays to zero along half a cosine wave.
    Cosine,
}

impl Schedule {
    /// Returns the learning rate in step `step` (counted from 0) as a fraction of the maximum, 0 to 1. The learning
    /// rate rises linearly from zero during the first `warmup_steps` of `total_steps`.
    pub fn factor(self, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
        if step < warmup_steps {
            return step as f64 / warmup_steps as f64;
        }
        let length = total_steps.saturating_sub(warmup_steps).max(1) as f64;
        let progress = (step - warmup_steps) as f64 / length;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
        }
    }
}
