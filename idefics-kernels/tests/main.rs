//! Tests of the formats against the libraries that define them, and of the kernels against plain loops.

#![allow(clippy::unwrap_used)] // helpers too

mod attend;
mod common;
mod elementwise;
mod fixtures;
mod gguf;
mod isa;
mod linear;
mod parts;
mod properties;

/// Kernels state in debug assertions what their loads and stores rely on: without them these tests would see less.
#[test]
fn the_kernels_run_with_debug_assertions() {
    assert!(std::hint::black_box(cfg!(debug_assertions)), "run these tests in the profile `dev`");
}
