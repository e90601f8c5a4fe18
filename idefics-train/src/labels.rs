//! Labels and the cross-entropy loss.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::BatchError;

/// Which labels count in the loss. A label of −100 is always ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LabelRecipe {
    /// Image tokens are ignored, as in the documentation and the training code of Idefics2.
    #[default]
    IgnoreImageTokens,
    /// Image tokens count, as in Transformers 5.
    Transformers5,
}

impl LabelRecipe {
    /// Returns the label that is ignored in addition to −100.
    pub(crate) fn ignored(self, image_token_id: u32) -> i64 {
        match self {
            Self::IgnoreImageTokens => i64::from(image_token_id),
            Self::Transformers5 => IGNORED_LABEL,
        }
    }
}

/// The label that is always ignored, as in PyTorch.
pub(crate) const IGNORED_LABEL: i64 = -100;

/// The tokens to be predicted, and the slots whose logits predict them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextTokens {
    /// Flat indices of the slots that predict a token, `row · seq + t`.
    slots: Vec<i32>,
    /// The token that each of these slots should predict.
    targets: Vec<i32>,
}

impl NextTokens {
    /// Collects the targets among `labels`, `[batch · seq]`. `parent(row, slot)` returns the slot of the same row that
    /// predicts the label of `slot`, if there is one. Both slots are counted from the start of the row. Labels equal to
    /// −100 or `ignored` do not count.
    ///
    /// # Errors
    /// [`BatchError::Label`] if a label that counts is not less than `vocab_size`.
    pub(crate) fn new(
        labels: &[i64],
        seq: usize,
        ignored: i64,
        vocab_size: usize,
        parent: impl Fn(usize, usize) -> Option<usize>,
    ) -> Result<Self, BatchError> {
        let mut next = Self { slots: Vec::new(), targets: Vec::new() };
        for (index, &label) in labels.iter().enumerate().filter(|(_, label)| ![IGNORED_LABEL, ignored].contains(label))
        {
            let (row, slot) = (index / seq, index % seq);
            let Some(parent) = parent(row, slot) else { continue }; // no slot predicts this label
            let target = i32::try_from(label).ok().filter(|&label| label >= 0 && (label as usize) < vocab_size);
            next.targets.push(target.ok_or(BatchError::Label { row, slot, label, vocab_size })?);
            next.slots.push((row * seq + parent) as i32);
        }
        Ok(next)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Selects the slots that predict a token: takes `[batch · seq, n]` and returns `[n_targets, n]`.
    pub(crate) fn select_predictors(&self, slots: Tensor<2>) -> Tensor<2> {
        let device = slots.device();
        slots.select(0, Tensor::from_data(TensorData::from(self.slots.as_slice()), (&device, DType::I32)))
    }

    /// Computes the cross-entropy summed over all targets, `[1]`. `predictions` are logits, `[n_targets, vocab_size]`.
    pub(crate) fn cross_entropy(&self, predictions: Tensor<2>) -> Tensor<1> {
        let targets = TensorData::new(self.targets.clone(), [self.len(), 1]);
        let targets = Tensor::<2, Int>::from_data(targets, (&predictions.device(), DType::I32));
        -log_softmax(predictions, 1).gather(1, targets).sum()
    }
}
