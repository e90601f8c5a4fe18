//! Tests of the readers: good files, and every fault against its typed error.

#![allow(clippy::unwrap_used)] // helpers too

mod folders;
mod gguf;
mod gguf_model;
mod memory;
mod open;
mod pickle;
mod pickled;
mod quant_state;
mod stored;
