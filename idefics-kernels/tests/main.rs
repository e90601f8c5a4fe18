//! Tests of the formats against the libraries that define them, and of the kernels against f64 arithmetic.

#![allow(clippy::unwrap_used)] // also in helpers

mod attend;
mod blocks;
mod common;
mod elementwise;
mod fixtures;
mod gguf;
mod int4;
mod isa;
mod linear;
mod pages;
mod parts;
mod properties;

/// The kernels check the bounds of their loads and stores in debug assertions. Without them, these tests would find
/// fewer errors.
#[test]
fn debug_assertions_are_enabled() {
    assert!(
        std::hint::black_box(cfg!(debug_assertions)),
        "run these tests with debug assertions, for example in the profile `dev`"
    );
}
