//! Tests of the readers and writers: valid files, and the typed error for every fault.

#![allow(clippy::unwrap_used)] // in test helpers

mod folders;
mod gguf;
mod gguf_export;
mod gguf_model;
mod int4;
mod memory;
mod open;
mod pickle;
mod pickled;
mod quant_state;
mod stored;
