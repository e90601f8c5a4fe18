//! Tests of the assembled models, one binary: linking Burn is the slow part.

#![allow(clippy::unwrap_used)] // helpers too

mod common;
mod conversation;
mod end_to_end;
mod faults;
#[cfg(feature = "hub")]
mod hub;
mod invariance;
mod training;
