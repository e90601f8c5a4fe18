//! Rotary position embedding in the half-split form of the Llama and Mistral checkpoints.
//!
//! Paper: <https://arxiv.org/abs/2104.09864>. Source: `LlamaRotaryEmbedding`, `apply_rotary_pos_emb`. The pairs that
//! rotate together are `(j, j + head_dim / 2)`, not neighbours.
//!
//! Numerics: angles are rounded to f32 where the reference rounds them; cosine and sine are taken on the host and
//! uploaded once for each call of the decoder.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;
use crate::rope_scaling::{Frequencies, RopeScaling};

/// The frequencies of one head.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    frequencies: Frequencies,
    /// Factor on cosines and sines.
    attention_factor: f32,
}

impl RotaryEmbedding {
    /// The frequencies `theta^(-2j / head_dim)`, scaled by `scaling`.
    pub fn new(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Self {
        let frequencies = Frequencies::new(head_dim, theta, scaling);
        Self { frequencies, attention_factor: scaling.attention_factor() }
    }

    /// Whether the angles of a position depend on how long the sequence is, as with [`RopeScaling::Dynamic`] and
    /// [`RopeScaling::LongRope`]: then no table of angles holds for a whole generation.
    pub fn depends_on_length(&self) -> bool {
        self.frequencies.depend_on_length()
    }

    /// The angles at the given positions, the greatest of which ends the sequence.
    ///
    /// # Shapes
    /// - `position_ids`: `batch · seq` positions in tokens, row after row
    /// - returns tables of `[batch, 1, seq, head_dim]` in `dtype`
    ///
    /// # Panics
    /// If `position_ids` does not hold `batch · seq` positions.
    pub fn at(&self, position_ids: &[usize], batch: usize, dtype: DType, device: &Device) -> RotaryAngles {
        let seq_len = position_ids.iter().max().map_or(0, |last| last + 1);
        self.at_length(seq_len, position_ids, batch, dtype, device)
    }

    /// As [`Self::at`] where the longest row of the batch will have `seq_len` tokens after this call. As in the
    /// reference, that length decides for every row and every position of the call, and what is in the cache keeps the
    /// angles that it was turned by.
    ///
    /// # Panics
    /// As [`Self::at`].
    pub fn at_length(
        &self,
        seq_len: usize,
        position_ids: &[usize],
        batch: usize,
        dtype: DType,
        device: &Device,
    ) -> RotaryAngles {
        let seq = position_ids.len() / batch;
        let inv_freq = self.frequencies.at(seq_len);
        let angles = || {
            position_ids.iter().flat_map(|&position| {
                // Both halves of the head turn by the same angles.
                inv_freq.iter().chain(&*inv_freq).map(move |inv_freq| f64::from(position as f32 * inv_freq))
            })
        };
        let upload = |values: Vec<f32>| {
            let data = TensorData::new(values, [batch, 1, seq, 2 * inv_freq.len()]);
            Tensor::<4>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        RotaryAngles {
            cos: upload(angles().map(|angle| angle.cos() as f32 * self.attention_factor).collect()),
            sin: upload(angles().map(|angle| angle.sin() as f32 * self.attention_factor).collect()),
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

    /// The device that they are on, and the dtype of the activations that they turn.
    pub fn location(&self) -> (Device, DType) {
        (self.cos.device(), self.cos.dtype())
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
