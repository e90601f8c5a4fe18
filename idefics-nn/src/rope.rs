//! Rotary position embeddings in the half-split form of the Llama and Mistral checkpoints.
//!
//! Paper: <https://arxiv.org/abs/2104.09864>. Source: `LlamaRotaryEmbedding` and `apply_rotary_pos_emb` in
//! Transformers. Each pair of elements `(j, j + head_dim / 2)` is rotated; neighbouring elements are not paired.
//!
//! Numerics: angles are rounded to f32 where Transformers rounds them. Cosines and sines are computed on the host and
//! uploaded once per decoder call.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::ops;
use crate::rope_scaling::{Frequencies, RopeScaling};

/// The rotary frequencies of a head.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    frequencies: Frequencies,
    /// Factor applied to cosines and sines.
    attention_factor: f32,
}

impl RotaryEmbedding {
    /// Creates the frequencies `theta^(-2j / head_dim)`, scaled according to `scaling`.
    pub fn new(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Self {
        let frequencies = Frequencies::new(head_dim, theta, scaling);
        Self { frequencies, attention_factor: scaling.attention_factor() }
    }

    /// Returns whether the angle of a position depends on the sequence length, as with [`RopeScaling::Dynamic`] and
    /// [`RopeScaling::LongRope`]. If so, a table of angles cannot be reused for a whole generation.
    pub fn depends_on_length(&self) -> bool {
        self.frequencies.depend_on_length()
    }

    /// Computes the angles at the given positions. The largest position is assumed to be the end of the sequence.
    ///
    /// # Shapes
    /// - `position_ids`: `batch · seq` positions, row by row
    /// - returns tables of shape `[batch, 1, seq, head_dim]` in `dtype`
    ///
    /// # Panics
    /// If `position_ids` does not hold `batch · seq` positions.
    pub fn at(&self, position_ids: &[usize], batch: usize, dtype: DType, device: &Device) -> RotaryAngles {
        let seq_len = position_ids.iter().max().map_or(0, |last| last + 1);
        self.at_length(seq_len, position_ids, batch, dtype, device)
    }

    /// Computes the angles like [`Self::at`], for a batch in which the longest row has `seq_len` tokens after this
    /// call. As in Transformers, this length applies to every row and position of the call. Cached keys keep the angles
    /// with which they were rotated.
    ///
    /// # Panics
    /// If `position_ids` does not hold `batch · seq` positions.
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
                // Both halves of the head use the same angles.
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

/// Cosines and sines for the positions of one decoder call.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    /// Cosines, `[batch, 1, seq, head_dim]`.
    cos: Tensor<4>,
    /// Sines, `[batch, 1, seq, head_dim]`.
    sin: Tensor<4>,
}

impl RotaryAngles {
    /// Moves the angles to another device and casts them to `dtype`, the dtype of the activations there.
    #[must_use]
    pub fn to_device(self, device: &Device, dtype: DType) -> Self {
        Self { cos: self.cos.to_device(device).cast(dtype), sin: self.sin.to_device(device).cast(dtype) }
    }

    /// Returns the device and the dtype of the angles. The dtype is that of the activations that the angles rotate.
    pub fn location(&self) -> (Device, DType) {
        (self.cos.device(), self.cos.dtype())
    }

    /// Selects the angles at `indices` from a single row of positions, for a batch of rows with one token each.
    ///
    /// # Shapes
    /// - `self`: `[1, 1, seq, head_dim]`
    /// - `indices`: `[batch]`, integers less than `seq`; GPUs do not check them
    /// - returns `[batch, 1, 1, head_dim]`
    ///
    /// # Panics
    /// If the angles have more than one row.
    #[must_use]
    pub fn select(&self, indices: Tensor<1, Int>) -> Self {
        let select = |angles: &Tensor<4>| angles.clone().swap_dims(0, 2).select(0, indices.clone());
        assert_eq!(self.cos.dims()[0], 1, "the angles must have one row");
        Self { cos: select(&self.cos), sin: select(&self.sin) }
    }

    /// Concatenates the angles of several batches along the batch axis. All of them must have the same number of
    /// positions per row.
    ///
    /// # Panics
    /// If `rows` is empty.
    #[must_use]
    pub fn cat(rows: Vec<Self>) -> Self {
        let (cos, sin) = rows.into_iter().map(|angles| (angles.cos, angles.sin)).unzip();
        Self { cos: Tensor::cat(cos, 0), sin: Tensor::cat(sin, 0) }
    }

    /// Rotates queries or keys by the angles of their positions.
    ///
    /// # Shapes
    /// - `states`: `[batch, heads, seq, head_dim]`
    /// - returns the same shape
    pub fn rotate(&self, states: Tensor<4>) -> Tensor<4> {
        ops::rotate(states, self.cos.clone(), self.sin.clone())
    }
}
