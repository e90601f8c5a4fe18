//! The assembled models, one file a generation.

pub mod idefics2;
