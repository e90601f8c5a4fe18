//! Learning rates over the steps of a run.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up. Names and shapes as in Transformers' `get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls in a straight line to zero.
    #[default]
    Linear,
    /// It falls along half a cosine to zero.
    Cosine,
}

impl Schedule {
    /// The share of the peak learning rate in step `step` (from 0) of `total_steps`, of which the first `warmup_steps`
    /// rise in a straight line from zero.
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
