#![doc = include_str!("../README.md")]

mod config;
mod connector;
pub mod flamingo;
mod resampler;

pub use config::{ConnectorConfig, PerceiverConfig};
pub use connector::Connector;
pub use idefics_nn::{ConfigError, GatedMlp};
pub use resampler::{PerceiverAttention, PerceiverLayer, PerceiverResampler};
