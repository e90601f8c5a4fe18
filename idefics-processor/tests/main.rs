//! One binary for all integration tests, so that they link once.
#![allow(clippy::unwrap_used)]

mod common;
mod idefics1;
mod image;
mod jpeg;
mod processor;
mod prompt;
mod tokenizer;
