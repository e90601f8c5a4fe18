//! Rotary position embedding in the half-split form of the Llama and Mistral checkpoints.
//!
//! Paper: <https://arxiv.org/abs/2104.09864>. Source: `LlamaRotaryEmbedding`, `apply_rotary_pos_emb`,
//! `_compute_llama3_parameters`. The pairs that rotate together are `(j, j + head_dim / 2)`, not neighbours.
//!
//! Numerics: frequencies and angles are rounded to f32 where the reference rounds them; cosine and sine are taken on
//! the host and uploaded once for each call of the decoder.

use std::f64::consts::TAU;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;

/// How a checkpoint stretches its frequencies to longer contexts; `rope_type` in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Frequencies as the paper has them.
    #[default]
    None,
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// What the lowest frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context that the model was first trained on, in tokens.
        original_max_position_embeddings: usize,
    },
}

/// The frequencies of one head.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// `[head_dim / 2]`, radians a token.
    inv_freq: Vec<f32>,
}

impl RotaryEmbedding {
    /// The frequencies `theta^(-2j / head_dim)`, stretched by `scaling`.
    pub fn new(head_dim: usize, theta: f64, scaling: RopeScaling) -> Self {
        let inv_freq = (0..head_dim / 2)
            .map(|j| {
                let exponent = (2 * j) as f32 / head_dim as f32;
                let inv_freq = 1.0 / theta.powf(f64::from(exponent)) as f32;
                scaling.apply(inv_freq)
            })
            .collect();
        Self { inv_freq }
    }

    /// The angles at the given positions.
    ///
    /// # Shapes
    /// - `position_ids`: `batch · seq` positions in tokens, row after row
    /// - returns tables of `[batch, 1, seq, head_dim]` in `dtype`
    ///
    /// # Panics
    /// If `position_ids` does not hold `batch · seq` positions.
    pub fn at(&self, position_ids: &[usize], batch: usize, dtype: DType, device: &Device) -> RotaryAngles {
        let seq = position_ids.len() / batch;
        let head_dim = 2 * self.inv_freq.len();
        let angles = || {
            position_ids.iter().flat_map(|&position| {
                // Both halves of the head turn by the same angles.
                self.inv_freq.iter().chain(&self.inv_freq).map(move |inv_freq| f64::from(position as f32 * inv_freq))
            })
        };
        let upload = |values: Vec<f32>| {
            let data = TensorData::new(values, [batch, 1, seq, head_dim]);
            Tensor::<4>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        RotaryAngles {
            cos: upload(angles().map(|angle| angle.cos() as f32).collect()),
            sin: upload(angles().map(|angle| angle.sin() as f32).collect()),
        }
    }
}

impl RopeScaling {
    fn apply(self, inv_freq: f32) -> f32 {
        match self {
            Self::None => inv_freq,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let wavelength = TAU / f64::from(inv_freq); // tokens a turn
                if wavelength > original / low_freq_factor {
                    (f64::from(inv_freq) / factor) as f32
                } else if wavelength < original / high_freq_factor {
                    inv_freq
                } else {
                    let kept = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    ((1.0 - kept) * f64::from(inv_freq) / factor + kept * f64::from(inv_freq)) as f32
                }
            }
        }
    }
}

/// Cosines and sines for the positions of one call.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    /// `[batch, 1, seq, head_dim]`.
    cos: Tensor<4>,
    /// `[batch, 1, seq, head_dim]`.
    sin: Tensor<4>,
}

impl RotaryAngles {
    /// The same on another device, in the dtype that activations have there.
    #[must_use]
    pub fn to_device(self, device: &Device, dtype: DType) -> Self {
        Self { cos: self.cos.to_device(device).cast(dtype), sin: self.sin.to_device(device).cast(dtype) }
    }

    /// Those of one row at `indices`, as the angles of as many rows of one token.
    ///
    /// # Shapes
    /// - `self`: `[1, 1, seq, head_dim]`
    /// - `indices`: `[batch]`, integers below `seq`, which GPUs do not check
    /// - returns `[batch, 1, 1, head_dim]`
    ///
    /// # Panics
    /// If these are the angles of several rows.
    #[must_use]
    pub fn select(&self, indices: Tensor<1, Int>) -> Self {
        let select = |angles: &Tensor<4>| angles.clone().swap_dims(0, 2).select(0, indices.clone());
        assert_eq!(self.cos.dims()[0], 1, "one row of angles");
        Self { cos: select(&self.cos), sin: select(&self.sin) }
    }

    /// Turns queries or keys to their positions.
    ///
    /// # Shapes
    /// - `states`: `[batch, heads, seq, head_dim]`
    /// - returns the same shape
    pub fn rotate(&self, states: Tensor<4>) -> Tensor<4> {
        ops::rotate(states, self.cos.clone(), self.sin.clone())
    }
}
