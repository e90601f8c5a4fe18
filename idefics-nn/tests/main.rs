//! Tests of idefics-nn: every layer against plain formulas, every fault of what a module needs against its typed error.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // helpers too

mod attention;
mod checkpoint;
mod common;
mod conversion;
#[path = "../../idefics-checkpoint/tests/folders.rs"]
mod folders;
mod frozen;
mod kv_cache;
mod layers;
#[path = "../../idefics-checkpoint/tests/memory.rs"]
mod memory;
mod quantized;
mod rope;

/// Largest difference between a layer and its formula in f64, on numbers around 1.
const EXACT: f32 = 1e-5;
