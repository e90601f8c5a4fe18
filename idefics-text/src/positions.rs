//! Where new tokens stand, and which tokens they see.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use idefics_nn::{ConfigError, KvCache, RotaryAngles, RotaryEmbedding};

use crate::mask::masked_out;
use crate::{Branches, TextConfig};

/// Where the new tokens stand and what they see: the same in every layer.
#[derive(Debug, Clone)]
pub struct Positions {
    /// The angles of the new tokens.
    pub rotary: RotaryAngles,
    /// `[batch, 1, n_new, len + n_new]`, of a slot `[batch, 1, 1, capacity]`, true hides the key; `None` if nothing is
    /// hidden.
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

    /// The positions of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow those in the cache: a part of a
    /// call after which `n_slots` of it will be filled.
    pub(crate) fn after(&self, inputs_embeds: &Tensor<3>, cache: &KvCache, n_slots: usize) -> Positions {
        let [batch, n_new, _] = inputs_embeds.dims();
        let device = inputs_embeds.device();
        let seq_len = n_slots - cache.left_padding().iter().min().copied().unwrap_or(0).min(n_slots);
        let position_ids = cache.next_positions(n_new);
        Positions {
            rotary: self.rotary.at_length(seq_len, &position_ids, batch, inputs_embeds.dtype(), &device),
            masked_out: masked_out(cache, n_new, self.sliding_window, &device),
        }
    }

    /// What the positions of single tokens in slots of the cache are made of, beside activations like `inputs_embeds`;
    /// `None` where the angles of a position depend on the length of the sequence.
    pub(crate) fn of_slots(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Option<SlotPositions> {
        if self.rotary.depends_on_length() {
            return None;
        }
        let (batch, capacity) = (cache.batch(), cache.capacity());
        let (dtype, device) = (inputs_embeds.dtype(), &inputs_embeds.device());
        let ints = |values: Vec<i32>, shape| Tensor::from_data(TensorData::new(values, shape), (device, DType::I32));
        Some(SlotPositions {
            rotary: self.rotary.at(&(0..capacity).collect::<Vec<_>>(), 1, dtype, device),
            slots: ints((0..capacity as i32).collect(), [1, capacity]),
            first: ints(cache.left_padding().iter().map(|&padding| padding as i32).collect(), [batch, 1]),
            sliding_window: self.sliding_window,
        })
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

/// What [`Positions`] of one new token a row are made of where the device alone knows its slot: everything that is not
/// that slot's, uploaded once.
#[derive(Debug, Clone)]
pub struct SlotPositions {
    /// Of every position up to the cache's capacity.
    rotary: RotaryAngles,
    /// `[1, capacity]`, I32.
    slots: Tensor<2, Int>,
    /// The first slot of each row that is no padding, `[batch, 1]`, I32.
    first: Tensor<2, Int>,
    sliding_window: Option<usize>,
}

impl SlotPositions {
    /// The positions of the token in `slot`, `[1]` of I32, of each row.
    pub fn at(&self, slot: &Tensor<1, Int>) -> Positions {
        let ([batch, _], [_, capacity]) = (self.first.dims(), self.slots.dims());
        let slot = slot.clone().unsqueeze::<2>(); // [1, 1]
        let position_ids = (slot.clone() - self.first.clone()).clamp_min(0); // [batch, 1]
        let in_all_rows = |of_one: Tensor<2, Int>| of_one.expand([batch, capacity]);
        let slots = in_all_rows(self.slots.clone());
        let mut first = self.first.clone();
        if let Some(window) = self.sliding_window {
            first = first.clone().max_pair((slot.clone() + 1 - window as i32).expand([batch, 1]));
        }
        let is_before = slots.clone().lower(in_all_rows(first));
        let masked_out = slots.greater(in_all_rows(slot)).bool_or(is_before); // [batch, capacity]
        Positions {
            rotary: self.rotary.select(position_ids.reshape([batch])),
            masked_out: Some(masked_out.reshape([batch, 1, 1, capacity])),
        }
    }
}
