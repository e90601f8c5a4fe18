//! Tests of the formats against the libraries that define them, and of the kernels against plain loops.

#![allow(clippy::unwrap_used)] // helpers too

mod attend;
mod common;
mod elementwise;
mod fixtures;
mod linear;
mod properties;
mod quant_state;
