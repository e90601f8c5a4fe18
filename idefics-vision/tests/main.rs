//! Tests of idefics-vision: the reference's numbers, and what batching and padding must not change.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // helpers too

mod clip;
#[path = "../../idefics-nn/tests/common/mod.rs"]
mod common;
mod config;
mod invariance;
mod patches;
mod reference;

/// Largest difference from the reference.
const REFERENCE: f32 = 1e-4;
/// Largest difference between two ways to compute the same.
const SAME: f32 = 1e-5;
/// What the tower's tensors are called in a checkpoint.
const PREFIX: &str = "model.vision_model.";
