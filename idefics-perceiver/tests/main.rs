//! Tests of idefics-perceiver: comparison with Transformers, and invariance under batching and padding.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

#[path = "../../idefics-nn/tests/common/mod.rs"]
mod common;
mod config;
mod flamingo;
mod invariance;
mod reference;

/// Absolute tolerance in comparisons with Transformers.
const REFERENCE: f32 = 1e-4;
/// Absolute tolerance between two ways of computing the same result.
const SAME: f32 = 1e-5;
/// Prefix of the connector's tensor names in a checkpoint.
const PREFIX: &str = "model.connector.";
