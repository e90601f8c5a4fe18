#![doc = include_str!("../README.md")]

mod attention;
mod branches;
mod config;
mod decoder;
mod mask;

pub use attention::SelfAttention;
pub use branches::Branches;
pub use config::{RopeParameters, TextConfig};
pub use decoder::{Decoder, DecoderLayer, DecoderObserver, Positions, Unobserved};
pub use idefics_nn::{ConfigError, GatedMlp, KvCache};
