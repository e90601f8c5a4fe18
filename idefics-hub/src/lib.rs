#![doc = include_str!("../README.md")]

mod blob;
mod cache;
mod digest;
mod download;
mod error;
mod fetch;
mod files;
mod id;
mod index;
mod options;
mod progress;
mod remote;
mod retry;
mod server;
mod source;
mod worker;

pub use error::{HubError, HubErrorKind};
pub use fetch::{cached_snapshot, fetch, fetch_gguf, fetch_with};
pub use options::HubOptions;
pub use progress::HubProgress;
pub use source::ModelSource;
