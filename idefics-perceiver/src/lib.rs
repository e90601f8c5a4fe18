#![doc = include_str!("../README.md")]

mod config;
mod connector;
pub mod flamingo;
mod pixel_shuffle;
mod resampler;

pub use config::{ConnectorConfig, PerceiverConfig};
pub use connector::Connector;
/// Checkpoint loading and other items shared by all components. The crate re-exports Burn as [`nn::burn`].
pub use idefics_nn as nn;
pub use idefics_nn::{Activation, ConfigError, GatedMlp, burn};
pub use pixel_shuffle::{ModalityProjection, PixelShuffleConfig, PixelShuffleConnector, pixel_shuffle};
pub use resampler::{PerceiverAttention, PerceiverLayer, PerceiverResampler};
