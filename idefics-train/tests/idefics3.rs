//! Training of Idefics3, SmolVLM and SmolVLM2.

use burn::tensor::{DType, Device};
use idefics_generate::processor::image::ImageTile;
use idefics_generate::{Idefics3, InputError};
use idefics_train::{BatchError, LabelRecipe, LabelledText, Trainable, TrainingBatch, training_gradients_checkpointed};

use crate::training::{assert_close_gradients, folder, frozen, weights};

const CHECKPOINTS: [&str; 3] = ["tiny-idefics3", "tiny-smolvlm", "tiny-smolvlm2"];

fn model(name: &str) -> Idefics3 {
    Idefics3::from_folder(&folder(name), &Device::flex().autodiff(), DType::F32, |_| ()).unwrap()
}

fn tile(seed: usize, width: usize, height: usize) -> ImageTile {
    let pixels = (0..3 * width * height).map(|index| ((index * 31 + seed * 17) % 97) as f32 / 48.0 - 1.0);
    ImageTile::new(width, height, pixels.collect()).unwrap()
}

/// Creates three texts about one tile and two about two tiles. Returns them twice: as a batch of two rows with branches
/// (texts that share a prefix), and as a padded batch with one row per text.
pub(crate) fn batches(model: &Idefics3) -> [TrainingBatch; 2] {
    let config = model.config();
    let side = config.vision_config.image_size;
    let text = |n_tiles: usize, read: &[u32], learned: &[u32]| {
        let image = std::iter::repeat_n(config.image_token_id, n_tiles * config.vectors_per_tile());
        let ids: Vec<u32> = std::iter::once(1).chain(image).chain(read.iter().chain(learned).copied()).collect();
        let n_read = ids.len() - learned.len();
        let labels = ids.iter().enumerate().map(|(slot, &id)| if slot < n_read { -100 } else { i64::from(id) });
        LabelledText { labels: labels.collect(), ids }
    };
    let rows = [
        vec![text(1, &[40, 41], &[50, 51]), text(1, &[40, 41], &[50, 52, 53]), text(1, &[42], &[54])],
        vec![text(2, &[40, 44], &[55]), text(2, &[45, 46, 47, 48], &[56, 57])],
    ];
    let (one, two) = ([tile(1, side, side)], [tile(2, side, side), tile(3, side, side)]);
    let recipe = LabelRecipe::default();
    let together = TrainingBatch::branching(&rows, [&one[..], &two].concat(), recipe, 0).unwrap();
    let images = [&one[..], &one, &one, &two, &two].concat();
    [together, TrainingBatch::padded(&rows.concat(), images, recipe, 0).unwrap()]
}

/// Creates a batch of one row that contains no images.
fn text_only() -> TrainingBatch {
    let text = LabelledText { ids: vec![1, 40, 41, 42, 43], labels: vec![-100, -100, 41, 42, 43] };
    TrainingBatch::padded(&[text], Vec::new(), LabelRecipe::default(), 0).unwrap()
}

#[test]
fn branching_rows_match_separate_padded_rows() {
    for name in CHECKPOINTS {
        let model = model(name);
        let [together, apart] = batches(&model);
        assert!(together.prompts.input_ids().len() < apart.prompts.input_ids().len());
        let expected = model.training_gradients(&apart).unwrap();
        assert_eq!(expected.gradients.iter().count(), weights(&model).len() - model.config().tied().len(), "{name}");
        assert_close_gradients(name, &expected, &model.training_gradients(&together).unwrap());
        assert_close_gradients(name, &expected, &training_gradients_checkpointed(&model, &together).unwrap());
    }
}

#[test]
fn recomputing_layers_gives_the_same_gradients() {
    for name in CHECKPOINTS {
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
        &["model.vision_model.", "model.connector."],
        &["model.text_model.", "lm_head."],
        &["model.vision_model.", "model.connector.", "model.text_model.embed_tokens.", "model.text_model.layers.0."],
        &["model.", "lm_head."],
    ] {
        for name in CHECKPOINTS {
            let model = frozen(model(name), prefixes);
            for batch in batches(&model).into_iter().chain([text_only()]) {
                let kept = model.training_gradients(&batch).unwrap();
                let recomputed = training_gradients_checkpointed(&model, &batch).unwrap();
                assert_close_gradients(&format!("{name} {}", prefixes.join(" ")), &kept, &recomputed);
            }
        }
    }
}

#[test]
fn rejects_tile_that_pixel_shuffle_cannot_group() {
    let model = model("tiny-idefics3"); // patches of 4 pixels, squares of 2 patches
    let text = LabelledText { ids: vec![1, 40, 41], labels: vec![-100, -100, 41] };
    let batch = TrainingBatch::padded(&[text], vec![tile(1, 12, 24)], LabelRecipe::default(), 0).unwrap();
    for refused in [model.training_gradients(&batch), training_gradients_checkpointed(&model, &batch)] {
        let error = refused.unwrap_err();
        assert!(matches!(error, BatchError::Input(InputError::PixelShuffle { rows: 6, cols: 3, .. })), "{error}");
    }
}
