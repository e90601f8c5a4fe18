//! Where new tokens stand, and which tokens they see.

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use idefics_nn::{ConfigError, KvCache, RotaryAngles, RotaryEmbedding};

use crate::mask::masked_out;
use crate::{Branches, TextConfig};

/// Where the new tokens stand and what they see: the same in every layer.
#[derive(Debug, Clone)]
pub struct Positions {
    /// The angles of the new tokens.
    pub rotary: RotaryAngles,
    /// `[batch, 1, n_new, len + n_new]`, true hides the key; `None` if nothing is hidden.
    pub masked_out: Option<Tensor<4, Bool>>,
}

impl Positions {
    /// The same on another device, for activations of that dtype.
    #[must_use]
    pub fn to_device(self, device: &Device, dtype: DType) -> Self {
        Self {
            rotary: self.rotary.to_device(device, dtype),
            masked_out: self.masked_out.map(|masked_out| masked_out.to_device(device)),
        }
    }
}

/// What a decoder's configuration says of positions.
#[derive(Debug, Clone)]
pub(crate) struct PositionRules {
    rotary: RotaryEmbedding,
    sliding_window: Option<usize>,
}

impl PositionRules {
    pub(crate) fn new(config: &TextConfig) -> Result<Self, ConfigError> {
        Ok(Self { rotary: config.rotary()?, sliding_window: config.sliding_window })
    }

    /// The positions of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow those in the cache.
    pub(crate) fn after(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Positions {
        let [batch, n_new, _] = inputs_embeds.dims();
        let device = inputs_embeds.device();
        Positions {
            rotary: self.rotary.at(&cache.next_positions(n_new), batch, inputs_embeds.dtype(), &device),
            masked_out: masked_out(cache, n_new, self.sliding_window, &device),
        }
    }

    /// The positions of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which `branches` was last given.
    ///
    /// # Panics
    /// If `branches` is of other rows or another number of slots.
    pub(crate) fn of_branches(&self, inputs_embeds: &Tensor<3>, branches: &Branches, cache: &KvCache) -> Positions {
        let [batch, n_new, _] = inputs_embeds.dims();
        let n_keys = cache.len() + n_new;
        assert_eq!((branches.batch(), branches.n_slots()), (batch, n_keys), "the slots of rows that branch");
        let device = inputs_embeds.device();
        let masked_out = TensorData::new(branches.masked_out(n_new, self.sliding_window), [batch, 1, n_new, n_keys]);
        Positions {
            rotary: self.rotary.at(&branches.positions(n_new), batch, inputs_embeds.dtype(), &device),
            masked_out: Some(Tensor::from_data(masked_out, &device)),
        }
    }
}
