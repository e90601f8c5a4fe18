//! The engine that answers many requests at once.
//!
//! Requests join and leave a running batch at every step (continuous batching). [`scheduler`] decides what runs next
//! and which pages of the KV cache each request owns. It uses no tensors, threads or clocks, so that a simulator can
//! test it.

pub mod scheduler;
