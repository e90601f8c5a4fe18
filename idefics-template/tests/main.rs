//! All integration tests in one binary.

#![allow(clippy::unwrap_used)]

mod basic;
mod limits;
mod reference;
mod transformers;
