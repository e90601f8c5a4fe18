//! One binary for all integration tests, so that they link once.
#![allow(clippy::unwrap_used)]

mod files;
mod formats;
mod jpeg;
mod resize;
mod resized;
mod sources;
mod tiff;
