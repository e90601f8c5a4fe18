//! Tests of idefics-text: agreement with the reference, and invariance to caching, batching and padding.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // in test helpers

#[path = "../../idefics-nn/tests/common/mod.rs"]
mod common;
mod config;
mod cross_attention;
mod invariance;
mod pages;
mod positions;
mod reference;
mod rope;

use idefics_text::TextConfig;

/// Returns the defaults of the reference's `MistralConfig`, which the checkpoints of the tests omit.
fn mistral_defaults() -> TextConfig {
    TextConfig { max_position_embeddings: 131_072, rms_norm_eps: 1e-6, ..TextConfig::mistral_7b() }
}

/// Maximum difference from the reference.
const REFERENCE: f32 = 1e-4;
/// Maximum difference between two ways to compute the same result.
const SAME: f32 = 1e-5;
/// Prefix of the decoder's tensors in a checkpoint.
const PREFIX: &str = "model.text_model.";
