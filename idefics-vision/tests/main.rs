//! Tests of idefics-vision: comparison with Transformers, and invariance under batching and padding.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

mod clip;
#[path = "../../idefics-nn/tests/common/mod.rs"]
mod common;
mod config;
mod invariance;
mod patches;
mod reference;

/// Absolute tolerance in comparisons with Transformers.
const REFERENCE: f32 = 1e-4;
/// Absolute tolerance between two ways of computing the same result.
const SAME: f32 = 1e-5;
/// Prefix of the tower's tensor names in a checkpoint.
const PREFIX: &str = "model.vision_model.";
