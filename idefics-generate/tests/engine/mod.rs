//! The engine: each request has the answers that it would have alone.

mod common;
mod faults;
mod gguf;
mod requests;
mod speculation;
