//! One binary for all integration tests, so that they link once.
#![allow(clippy::unwrap_used)]

mod common;
mod image;
mod processor;
mod prompt;
mod tokenizer;
