//! Micro-batches that cannot be used, and micro-batches from which there is nothing to learn.

use idefics_generate::{Idefics2, InputError, Prompts};
use idefics_train::{
    BatchError, LabelRecipe, LabelledText, LossGradients, TrainError, Trainable, Trainer, TrainingBatch,
    training_gradients_checkpointed,
};
use proptest::prelude::*;

use crate::idefics1;
use crate::training::{batch, config, model, run_config, text_only, weights};

/// Computes the gradients in two ways: with the activations kept, and with the activations recomputed.
fn both(model: &Idefics2, batch: &TrainingBatch) -> [Result<LossGradients, BatchError>; 2] {
    [model.training_gradients(batch), training_gradients_checkpointed(model, batch)]
}

fn assert_refused(model: &Idefics2, batch: &TrainingBatch, expected: &BatchError) {
    for refused in both(model, batch) {
        assert_eq!(&refused.unwrap_err(), expected);
    }
}

#[test]
fn rejects_labels_and_parents_that_do_not_fit_the_prompts() {
    let model = model("small");
    let good = text_only(); // one row of five slots
    for labels in [0, 4, 6] {
        let batch = TrainingBatch { labels: vec![-100; labels], ..good.clone() };
        assert_refused(&model, &batch, &BatchError::LabelCount { slots: 5, labels });
    }
    let vocab_size = config("small").text_config.vocab_size;
    for label in [vocab_size as i64, -1, -101, i64::MAX, i64::MIN] {
        let batch = TrainingBatch { labels: vec![-100, 40, 41, label, 43], ..good.clone() };
        assert_refused(&model, &batch, &BatchError::Label { row: 0, slot: 3, label, vocab_size });
    }
    for parents in [0, 4, 6] {
        let wrong = BatchError::ParentCount { slots: 5, parents };
        let batch = TrainingBatch { parents: Some(vec![None; parents]), ..good.clone() };
        assert_refused(&model, &batch, &wrong);
        assert_eq!(batch.attend_to_latest_images(7, None).unwrap_err(), wrong);
    }
    for parent in [2, 4, usize::MAX] {
        let wrong = BatchError::Parent { row: 0, slot: 2, parent };
        let parents = vec![None, Some(0), Some(parent), Some(2), Some(3)];
        let batch = TrainingBatch { parents: Some(parents), ..good.clone() };
        assert_refused(&model, &batch, &wrong);
        assert_eq!(batch.attend_to_latest_images(7, None).unwrap_err(), wrong);
    }
    let prompts = Prompts::pad_left(&[vec![1, 40], vec![41]], 0).unwrap();
    let (labels, parents) = (vec![-100, 40, -100, 41], Some(vec![None, Some(0), None, Some(0)]));
    let batch = TrainingBatch { prompts, labels, parents, ..good };
    assert_refused(&model, &batch, &BatchError::LeftPadding { row: 1 });
}

#[test]
fn error_of_a_step_names_the_step_and_changes_nothing() {
    let mut trainer = Trainer::new(model("small"), run_config(3)).unwrap();
    let before = weights(trainer.module());
    let bad = TrainingBatch { labels: Vec::new(), ..text_only() };
    let error = trainer.step(&[text_only(), bad], Idefics2::training_gradients).unwrap_err();
    assert!(matches!(error, TrainError::Input { step: 0, source: BatchError::LabelCount { .. } }), "{error}");
    assert_eq!((trainer.steps_done(), weights(trainer.module())), (0, before));
}

#[test]
fn rejects_texts_without_one_label_per_token() {
    let good = LabelledText { ids: vec![1, 2], labels: vec![-100, 2] };
    let bad = LabelledText { ids: vec![1, 2], labels: vec![2] };
    let wrong = BatchError::TextLabels { text: 2, tokens: 2, labels: 1 };
    let recipe = LabelRecipe::default();
    let texts = [good.clone(), good.clone(), bad.clone()];
    assert_eq!(TrainingBatch::padded(&texts, Vec::new(), recipe, 0).unwrap_err(), wrong);
    let rows = [vec![good.clone()], vec![good, bad]];
    assert_eq!(TrainingBatch::branching(&rows, Vec::new(), recipe, 0).unwrap_err(), wrong);
}

#[test]
fn nothing_is_learned_if_all_labels_are_ignored() {
    let (model, config) = (model("small"), config("small"));
    let learned = batch(&config, 1);
    let image = i64::from(config.image_token_id);
    // The labels are −100, image tokens that the recipe ignores, and a label that no slot predicts.
    let mut labels = vec![-100; learned.labels.len()];
    labels[0] = 40;
    labels[3] = image;
    let ignored = TrainingBatch { labels, ..learned.clone() };
    for found in both(&model, &ignored) {
        let LossGradients { loss, n_labels, gradients } = found.unwrap();
        assert_eq!((loss, n_labels, gradients.iter().count()), (0.0, 0, 0));
    }
    let idefics1 = idefics1::model("idefics1-small");
    let [_, mut blank] = idefics1::batches(&idefics1);
    blank.labels.fill(-100);
    for found in [idefics1.training_gradients(&blank), training_gradients_checkpointed(&idefics1, &blank)] {
        assert_eq!(found.unwrap().n_labels, 0);
    }

    let step = |batches: &[TrainingBatch]| {
        let mut trainer = Trainer::new(model.clone(), run_config(3)).unwrap();
        trainer.step(batches, Idefics2::training_gradients).map(|report| (report, weights(trainer.module())))
    };
    let alone = step(std::slice::from_ref(&learned)).unwrap();
    assert!(alone.0.loss.is_finite() && alone.0.applied);
    assert!(step(&[ignored.clone(), learned, ignored.clone()]).unwrap() == alone);
    assert!(matches!(step(&[ignored]).unwrap_err(), TrainError::NoLabels { step: 0 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_labels_and_parents_are_learned_or_refused(
        rows in prop::collection::vec(prop::collection::vec(0_u32..500, 1..4), 1..3),
        labels in prop::collection::vec(prop_oneof![4 => 0_i64..500, 1 => Just(-100_i64), 1 => any::<i64>()], 0..7),
        parents in prop::option::of(prop::collection::vec(prop::option::of(0_usize..6), 0..7)),
    ) {
        let model = model("small");
        let prompts = Prompts::pad_left(&rows, 0).unwrap();
        let batch = TrainingBatch { prompts, images: Vec::new(), labels, recipe: LabelRecipe::default(), parents };
        let [kept, recomputed] = both(&model, &batch);
        match (kept, recomputed) {
            (Ok(kept), Ok(recomputed)) => {
                prop_assert!(kept.loss.is_finite() && kept.gradients.norm().is_finite());
                prop_assert_eq!(kept.n_labels, recomputed.n_labels);
            }
            (Err(kept), Err(recomputed)) => prop_assert_eq!(kept, recomputed),
            (kept, recomputed) => prop_assert!(false, "{kept:?} {recomputed:?}"),
        }
    }
}

#[test]
fn input_error_of_the_model_is_kept() {
    let model = model("small");
    let unknown = LabelledText { ids: vec![1, 1_000_000, 2], labels: vec![-100, -100, 2] };
    let batch = TrainingBatch::padded(&[unknown], Vec::new(), LabelRecipe::default(), 0).unwrap();
    for refused in both(&model, &batch) {
        let error = refused.unwrap_err();
        assert!(matches!(error, BatchError::Input(InputError::TokenId { id: 1_000_000, .. })), "{error}");
    }
}
