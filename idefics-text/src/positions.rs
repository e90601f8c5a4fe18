//! Positions and attention masks of new tokens.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use idefics_nn::{ConfigError, KvCache, RotaryAngles, RotaryEmbedding};

use crate::mask::{causal_mask, causal_mask_at};
use crate::{Branches, TextConfig};

/// Positions and attention masks of new tokens. They are the same in every layer.
#[derive(Debug, Clone)]
pub struct Positions {
    /// Rotary angles of the new tokens.
    pub rotary: RotaryAngles,
    /// Self-attention mask, `[batch, 1, n_new, len + n_new]`, where `len` is the number of cached slots. True hides the
    /// key; `None` if nothing is hidden. [`SlotPositions::at`] gives `[batch, 1, 1, capacity]` instead.
    pub mask: Option<Tensor<4, Bool>>,
    /// Cross-attention mask. `None` if the cache has no context, or if no token sees any part of it.
    pub context: Option<SeenContext>,
}

/// The parts of a context that new tokens see.
#[derive(Debug, Clone)]
pub struct SeenContext {
    /// Cross-attention mask, `[batch, 1, n_new, n_keys]`. True hides the key; `None` if nothing is hidden.
    pub mask: Option<Tensor<4, Bool>>,
}

impl Positions {
    /// Moves everything to another device, and converts the angles for activations of type `dtype`.
    #[must_use]
    pub fn to_device(self, device: &Device, dtype: DType) -> Self {
        let mask = |mask: Option<Tensor<4, Bool>>| mask.map(|mask| mask.to_device(device));
        Self {
            rotary: self.rotary.to_device(device, dtype),
            mask: mask(self.mask),
            context: self.context.map(|seen| SeenContext { mask: mask(seen.mask) }),
        }
    }
}

/// Returns which parts of the cache's context the tokens in `slots` see, or `None` if they see no part.
fn seen_context(cache: &KvCache, slots: Range<usize>, device: &Device) -> Option<SeenContext> {
    let context = cache.context()?;
    let view = context.seen(slots);
    (!view.sees_nothing()).then(|| SeenContext { mask: view.mask(context.part_len(), device) })
}

/// The parts of a decoder's configuration that determine positions and masks: rotary embedding and sliding window.
#[derive(Debug, Clone)]
pub struct PositionRules {
    rotary: RotaryEmbedding,
    sliding_window: Option<usize>,
}

impl PositionRules {
    pub(crate) fn new(config: &TextConfig) -> Result<Self, ConfigError> {
        Ok(Self { rotary: config.rotary()?, sliding_window: config.sliding_window })
    }

    /// Returns the positions and masks of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which follow the tokens
    /// in the cache.
    ///
    /// The tokens may be a chunk of a prompt. `n_slots` is the number of slots that the cache uses after the whole
    /// prompt. Some rotary scalings depend on this length.
    pub(crate) fn for_next_tokens(&self, inputs_embeds: &Tensor<3>, cache: &KvCache, n_slots: usize) -> Positions {
        let [batch, n_new, _] = inputs_embeds.dims();
        let device = inputs_embeds.device();
        let seq_len = n_slots - cache.left_padding().iter().min().copied().unwrap_or(0).min(n_slots);
        let position_ids = cache.next_positions(n_new);
        Positions {
            rotary: self.rotary.at_length(seq_len, &position_ids, batch, inputs_embeds.dtype(), &device),
            mask: causal_mask(cache, n_new, self.sliding_window, &device),
            context: seen_context(cache, cache.len()..cache.len() + n_new, &device),
        }
    }

    /// Returns whether the rotary angles of a prompt depend on its length, so that prompts of different lengths cannot
    /// share the keys and values of a common beginning.
    pub fn depends_on_length(&self) -> bool {
        self.rotary.depends_on_length()
    }

    /// Returns the positions that the token at `position` of an unpadded sequence sees, including its own.
    pub fn seen(&self, position: usize) -> Range<usize> {
        self.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }

    /// Returns the positions of one token per row of a cache in pages. Activations have the dtype and device of
    /// `inputs_embeds`, `[rows, 1, d]`.
    ///
    /// There is no self-attention mask, because the cache knows what each token sees ([`Self::seen`]). If the rotary
    /// angles depend on the length of the sequence, each row uses its own length up to its token.
    pub fn for_rows(&self, inputs_embeds: &Tensor<3>, positions: &[usize], context: Option<SeenContext>) -> Positions {
        let (dtype, device) = (inputs_embeds.dtype(), &inputs_embeds.device());
        let rotary = match self.rotary.depends_on_length() {
            false => self.rotary.at(positions, positions.len(), dtype, device),
            true => RotaryAngles::cat(positions.iter().map(|&at| self.rotary.at(&[at], 1, dtype, device)).collect()),
        };
        Positions { rotary, mask: None, context }
    }

    /// Returns the positions and masks of the tokens of `inputs_embeds`, `[1, n_new, d]`. These tokens are at
    /// `positions` of a single unpadded sequence, which has `seq_len` tokens in total. Some rotary scalings depend on
    /// this length.
    pub fn for_chunk(
        &self,
        inputs_embeds: &Tensor<3>,
        positions: Range<usize>,
        seq_len: usize,
        context: Option<SeenContext>,
    ) -> Positions {
        let device = inputs_embeds.device();
        let position_ids: Vec<usize> = positions.clone().collect();
        Positions {
            rotary: self.rotary.at_length(seq_len, &position_ids, 1, inputs_embeds.dtype(), &device),
            mask: causal_mask_at(positions, self.sliding_window, &device),
            context,
        }
    }

    /// Creates the data from which [`SlotPositions::at`] computes positions and masks of single tokens. Activations
    /// have the dtype and device of `inputs_embeds`. `None` if the rotary angles depend on the length of the sequence.
    pub(crate) fn for_slots(&self, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Option<SlotPositions> {
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
            context: seen_context(cache, cache.len()..cache.len() + 1, device),
        })
    }

    /// Returns the positions and masks of the tokens of `inputs_embeds`, `[batch, n_new, d]`, which were just appended
    /// to `branches`.
    ///
    /// # Panics
    /// If the number of rows or slots of `branches` differs from that of the cache after the new tokens are appended.
    pub(crate) fn for_branches(&self, inputs_embeds: &Tensor<3>, branches: &Branches, cache: &KvCache) -> Positions {
        let [batch, n_new, _] = inputs_embeds.dims();
        let n_keys = cache.len() + n_new;
        assert_eq!(
            (branches.batch(), branches.n_slots()),
            (batch, n_keys),
            "the branches must have the rows and slots of the cache"
        );
        let device = inputs_embeds.device();
        let mask = TensorData::new(branches.mask(n_new, self.sliding_window), [batch, 1, n_new, n_keys]);
        Positions {
            rotary: self.rotary.at(&branches.positions(n_new), batch, inputs_embeds.dtype(), &device),
            mask: Some(Tensor::from_data(mask, &device)),
            context: seen_context(cache, cache.len()..n_keys, &device),
        }
    }
}

/// Data from which the [`Positions`] of one new token per row are computed on the device. The data is uploaded once.
/// The slot of the token is a tensor, so that a captured graph can be replayed for any slot.
#[derive(Debug, Clone)]
pub struct SlotPositions {
    /// Angles of all positions up to the capacity of the cache.
    rotary: RotaryAngles,
    /// Indices of all slots, `[1, capacity]`, I32.
    slots: Tensor<2, Int>,
    /// First slot of each row that is not padding, `[batch, 1]`, I32.
    first: Tensor<2, Int>,
    sliding_window: Option<usize>,
    context: Option<SeenContext>,
}

impl SlotPositions {
    /// Returns the positions and masks of one token per row. All tokens are in the slot `slot`, `[1]`, I32.
    pub fn at(&self, slot: &Tensor<1, Int>) -> Positions {
        let ([batch, _], [_, capacity]) = (self.first.dims(), self.slots.dims());
        let slot = slot.clone().unsqueeze::<2>(); // [1, 1]
        let position_ids = (slot.clone() - self.first.clone()).clamp_min(0); // [batch, 1]
        let in_all_rows = |row: Tensor<2, Int>| row.expand([batch, capacity]);
        let slots = in_all_rows(self.slots.clone());
        let mut first = self.first.clone();
        if let Some(window) = self.sliding_window {
            let window = i32::try_from(window).unwrap_or(i32::MAX); // no cache has more slots
            first = first.clone().max_pair((slot.clone() + 1 - window).expand([batch, 1]));
        }
        let is_before = slots.clone().lower(in_all_rows(first));
        let mask = slots.greater(in_all_rows(slot)).bool_or(is_before); // [batch, capacity]
        Positions {
            rotary: self.rotary.select(position_ids.reshape([batch])),
            mask: Some(mask.reshape([batch, 1, 1, capacity])),
            context: self.context.clone(),
        }
    }
}
