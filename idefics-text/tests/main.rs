//! Tests of idefics-text: the reference's numbers, and what caching, batching and padding must not change.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // helpers too

#[path = "../../idefics-nn/tests/common/mod.rs"]
mod common;
mod config;
mod cross_attention;
mod invariance;
mod positions;
mod reference;
mod rope;

/// Largest difference from the reference.
const REFERENCE: f32 = 1e-4;
/// Largest difference between two ways to compute the same.
const SAME: f32 = 1e-5;
/// What the decoder's tensors are called in a checkpoint.
const PREFIX: &str = "model.text_model.";
