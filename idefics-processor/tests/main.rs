//! All integration tests in one binary, so that they are linked only once.
#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)]

mod common;
mod idefics1;
mod image;
mod messages;
mod processor;
mod prompt;
mod stream;
mod tokenizer;
mod toy_family;
mod video;
