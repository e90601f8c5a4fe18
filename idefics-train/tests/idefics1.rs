//! Training of IDEFICS v1.

use burn::tensor::{DType, Device};
use idefics_generate::Idefics1;
use idefics_generate::processor::image::ImageTile;
use idefics_train::{LabelRecipe, LabelledText, Trainable, TrainingBatch, training_gradients_checkpointed};

use crate::training::{assert_close_gradients, frozen};
use crate::xtask_folder;

const IMAGE: u32 = 475;
const EOS: u32 = 2;

pub(crate) fn model(name: &str) -> Idefics1 {
    let folder = xtask_folder("checkpoints").join(name);
    Idefics1::from_folder(&folder, &Device::flex().autodiff(), DType::F32, |_| ()).unwrap()
}

/// Creates three texts about one image and two about two images. Returns them twice: as a batch of two rows with
/// branches (texts that share a prefix), and as a batch with one row per text.
pub(crate) fn batches(model: &Idefics1) -> [TrainingBatch; 2] {
    let side = model.config().vision_config.image_size;
    let picture = |seed: usize| {
        let pixels = (0..3 * side * side).map(|index| ((index * 31 + seed * 17) % 97) as f32 / 48.0 - 1.0);
        ImageTile::new(side, side, pixels.collect()).unwrap()
    };
    let text = |read: &[u32], learned: &[u32]| {
        let ids: Vec<u32> = read.iter().chain(learned).copied().collect();
        let labels = ids.iter().enumerate().map(|(slot, &id)| if slot < read.len() { -100 } else { i64::from(id) });
        LabelledText { labels: labels.collect(), ids }
    };
    let rows = [
        vec![
            text(&[1, IMAGE, 40, 41], &[50, 51, EOS]),
            text(&[1, IMAGE, 40, 41], &[52]),
            text(&[1, IMAGE, 42], &[53, EOS]),
        ],
        vec![text(&[1, 43, IMAGE, 44, IMAGE], &[54, EOS]), text(&[1, 43, IMAGE, 44, IMAGE, 45], &[55, 56])],
    ];
    let (one, two) = ([picture(1)], [picture(2), picture(3)]);
    let recipe = LabelRecipe::Transformers5;
    let together = TrainingBatch::branching(&rows, [&one[..], &two].concat(), recipe, 0).unwrap();
    let images = [&one[..], &one, &one, &two, &two].concat();
    let apart = TrainingBatch::padded(&rows.concat(), images, recipe, 0).unwrap();
    [together, apart].map(|batch| batch.attend_to_latest_images(IMAGE, Some(EOS)).unwrap())
}

/// Creates a batch of one row that contains no images.
fn text_only() -> TrainingBatch {
    let text = LabelledText { ids: vec![1, 40, 41, 42], labels: vec![-100, -100, 41, 42] };
    let batch = TrainingBatch::padded(&[text], Vec::new(), LabelRecipe::Transformers5, 0).unwrap();
    batch.attend_to_latest_images(IMAGE, Some(EOS)).unwrap()
}

#[test]
fn branching_rows_match_separate_rows() {
    let model = model("idefics1-small");
    let [together, apart] = batches(&model).map(|batch| model.training_gradients(&batch).unwrap());
    assert_close_gradients("idefics1-small", &apart, &together);
}

#[test]
fn recomputing_layers_gives_the_same_gradients() {
    for name in ["idefics1-small"] {
        let model = model(name);
        for batch in batches(&model).into_iter().chain([text_only()]) {
            let kept = model.training_gradients(&batch).unwrap();
            assert_close_gradients(name, &kept, &training_gradients_checkpointed(&model, &batch).unwrap());
        }
    }
}

#[test]
fn recomputing_with_frozen_parts_gives_the_same_gradients() {
    for prefixes in [
        &["model.vision_model."][..],
        &["model.vision_model.", "model.perceiver_resampler."],
        &["model.vision_model.", "model.perceiver_resampler.", "model.embed_tokens.", "model.layers.", "lm_head."],
        &["model.layers.", "model.gated_cross_attn_layers.", "model.norm.", "model.embed_tokens.", "lm_head."],
        &["model.", "lm_head."],
    ] {
        let model = frozen(model("idefics1-small"), prefixes);
        for batch in batches(&model).into_iter().chain([text_only()]) {
            let kept = model.training_gradients(&batch).unwrap();
            let recomputed = training_gradients_checkpointed(&model, &batch).unwrap();
            assert_close_gradients(&prefixes.join(" "), &kept, &recomputed);
        }
    }
}
