//! Tests of idefics-nn: layers are compared with plain formulas, and faulty checkpoints must give typed errors.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

mod attention;
mod blocks;
mod checkpoint;
mod common;
mod conversion;
#[path = "../../idefics-checkpoint/tests/folders.rs"]
mod folders;
mod frozen;
mod int4;
mod kv_cache;
mod layers;
#[path = "../../idefics-checkpoint/tests/memory.rs"]
mod memory;
mod quantized;
mod rope;

/// Largest accepted difference between a layer and its formula in f64, for values around 1.
const EXACT: f32 = 1e-5;
