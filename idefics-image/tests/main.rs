//! All integration tests in one binary, so that the crate is linked only once.
#![allow(clippy::unwrap_used)]

mod animations;
mod avi;
mod files;
mod formats;
mod jpeg;
mod resize;
mod resized;
mod sources;
mod tiff;
