#![doc = include_str!("../README.md")]

mod config;
mod connector;
pub mod flamingo;
mod pixel_shuffle;
mod resampler;

pub use config::{ConnectorConfig, PerceiverConfig};
pub use connector::Connector;
/// Loading of checkpoints, and what else the components share; [`nn::burn`] is Burn.
pub use idefics_nn as nn;
pub use idefics_nn::{Activation, ConfigError, GatedMlp, burn};
pub use pixel_shuffle::{ModalityProjection, PixelShuffleConfig, PixelShuffleConnector, pixel_shuffle};
pub use resampler::{PerceiverAttention, PerceiverLayer, PerceiverResampler};
