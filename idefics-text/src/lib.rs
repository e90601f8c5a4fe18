#![doc = include_str!("../README.md")]

mod attention;
mod config;
mod decoder;
mod mask;
mod mlp;

pub use attention::SelfAttention;
pub use config::{RopeParameters, TextConfig};
pub use decoder::{Decoder, DecoderLayer, DecoderObserver, Unobserved};
pub use idefics_nn::{ConfigError, KvCache};
pub use mlp::Mlp;
