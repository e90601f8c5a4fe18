//! Tests of the assembled models, in one binary because linking Burn is slow.

#![allow(clippy::disallowed_methods)] // results are compared on the host
#![allow(clippy::unwrap_used)] // also in helper functions

mod beam_search;
mod chain;
mod common;
mod conversation;
mod end_to_end;
mod engine;
mod faults;
mod fixtures;
mod folders;
#[cfg(feature = "grammar")]
mod grammar;
mod idefics1;
mod invariance;
mod memory;
mod prepared;
mod refill;
mod sampling;
mod stop_strings;
mod strategies;
mod threads;
mod toy_family;
mod weights;
