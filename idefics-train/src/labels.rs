//! Labels and the cross-entropy loss.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};

/// Which labels count in the loss. −100 is always ignored.
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
    /// The label that is ignored in addition to −100.
    pub(crate) fn ignored(self, image_token_id: u32) -> i64 {
        match self {
            Self::IgnoreImageTokens => i64::from(image_token_id),
            Self::Transformers5 => IGNORED_LABEL,
        }
    }
}

/// The label that is always ignored, as in PyTorch.
pub(crate) const IGNORED_LABEL: i64 = -100;

/// The tokens to be predicted, and the slots that predict them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NextTokens {
    /// Flat indices of the slots that predict, `row · seq + t`.
    slots: Vec<i32>,
    /// The token that each of these slots should predict.
    targets: Vec<i32>,
}

impl NextTokens {
    /// Slot `t − 1` predicts label `t`, unless that is −100 or `ignored`. The first label of a row has no predictor.
    pub(crate) fn new(labels: &[i64], seq: usize, ignored: i64) -> Self {
        let (slots, targets) = (0..labels.len())
            .filter(|slot| slot % seq > 0 && labels[*slot] != IGNORED_LABEL && labels[*slot] != ignored)
            .map(|slot| (slot as i32 - 1, i32::try_from(labels[slot]).expect("labels are token ids")))
            .unzip();
        Self { slots, targets }
    }

    /// Like [`Self::new`], but label `t` is predicted by slot `parents[t]` of the same row.
    pub(crate) fn for_branches(labels: &[i64], parents: &[Option<usize>], seq: usize, ignored: i64) -> Self {
        let (slots, targets) = (0..labels.len())
            .filter(|&slot| labels[slot] != IGNORED_LABEL && labels[slot] != ignored)
            .filter_map(|slot| {
                let predicts = slot / seq * seq + parents[slot]?;
                Some((predicts as i32, i32::try_from(labels[slot]).expect("labels are token ids")))
            })
            .unzip();
        Self { slots, targets }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Selects the slots that predict: `[batch · seq, n]` in, `[n_targets, n]` out.
    pub(crate) fn select_predictors(&self, slots: Tensor<2>) -> Tensor<2> {
        let device = slots.device();
        slots.select(0, Tensor::from_data(TensorData::from(self.slots.as_slice()), (&device, DType::I32)))
    }

    /// The cross-entropy summed over all targets, `[1]`. `predictions` are logits, `[n_targets, vocab_size]`.
    ///
    /// # Panics
    /// If a target is not less than `vocab_size`. GPU backends would not check it.
    pub(crate) fn cross_entropy(&self, predictions: Tensor<2>) -> Tensor<1> {
        let [n_targets, vocab_size] = predictions.dims();
        let valid = |&target: &i32| usize::try_from(target).is_ok_and(|target| target < vocab_size);
        assert!(self.targets.iter().all(valid), "labels must be less than the vocabulary size, {vocab_size}");
        let targets = TensorData::new(self.targets.clone(), [n_targets, 1]);
        let targets = Tensor::<2, Int>::from_data(targets, (&predictions.device(), DType::I32));
        -log_softmax(predictions, 1).gather(1, targets).sum()
    }
}
