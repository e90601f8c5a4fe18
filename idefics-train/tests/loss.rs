//! Which labels count in the loss.

use burn::tensor::{DType, Device};
use idefics_generate::{Idefics2, LogitsToKeep, Model, Prompts};
use idefics_train::{BatchError, LabelRecipe, Trainable};

use crate::xtask_folder;

#[test]
fn loss_is_the_mean_over_labels_that_are_not_ignored() {
    let folder = xtask_folder("checkpoints/odd-heads");
    let model = Idefics2::from_folder(&folder, &Device::flex(), DType::F32, |_| ()).unwrap();
    let ids = vec![1, 30, 40, 50];
    let logits = model.forward(&Prompts::pad_left(&[ids], 0).unwrap(), &[], LogitsToKeep::All).unwrap();
    let loss = |labels: &[i64], recipe| model.loss(logits.clone(), labels, recipe).unwrap().into_scalar::<f32>();
    let one = |slot: usize, label: i64| {
        let mut labels = [-100; 4];
        labels[slot] = label;
        loss(&labels, LabelRecipe::default())
    };
    let both = loss(&[-100, 30, -100, 7], LabelRecipe::default());
    assert!((both - (one(1, 30) + one(3, 7)) / 2.0).abs() < 1e-6);
    let image = i64::from(model.config().image_token_id);
    assert_eq!(loss(&[1, 30, image, -100], LabelRecipe::default()), one(1, 30));
    assert!((loss(&[1, 30, image, -100], LabelRecipe::Transformers5) - one(1, 30)).abs() > 1e-3);
    assert!(loss(&[5, -100, -100, -100], LabelRecipe::default()).is_nan());

    let refused = |labels: &[i64]| model.loss(logits.clone(), labels, LabelRecipe::default()).unwrap_err();
    assert_eq!(refused(&[1, 30, 40]), BatchError::LabelCount { slots: 4, labels: 3 });
    let vocab_size = logits.dims()[2];
    for label in [vocab_size as i64, -1, i64::MIN, i64::MAX] {
        let wrong = BatchError::Label { row: 0, slot: 2, label, vocab_size };
        assert_eq!(refused(&[1, 30, label, 50]), wrong);
    }
}
