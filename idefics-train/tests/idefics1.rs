//! Training of the first Idefics.

use burn::tensor::{DType, Device};
use idefics_generate::Idefics1;
use idefics_generate::processor::image::ImageTile;
use idefics_train::{LabelRecipe, LabelledText, Trainable, TrainingBatch};

use crate::xtask_folder;

#[test]
fn texts_that_share_a_beginning_have_the_gradients_of_a_row_each() {
    let device = Device::flex().autodiff();
    let model =
        Idefics1::from_folder(&xtask_folder("checkpoints/idefics1-small"), &device, DType::F32, |_| ()).unwrap();
    let (image, eos) = (475, 2);
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
            text(&[1, image, 40, 41], &[50, 51, eos]),
            text(&[1, image, 40, 41], &[52]),
            text(&[1, image, 42], &[53, eos]),
        ],
        vec![text(&[1, 43, image, 44, image], &[54, eos]), text(&[1, 43, image, 44, image, 45], &[55, 56])],
    ];
    let (one, two) = ([picture(1)], [picture(2), picture(3)]);
    let recipe = LabelRecipe::Transformers5;
    let together = TrainingBatch::branching(&rows, [&one[..], &two].concat(), recipe, 0).unwrap();
    let images = [&one[..], &one, &one, &two, &two].concat();
    let apart = TrainingBatch::padded(&rows.concat(), images, recipe, 0).unwrap();
    let [together, apart] =
        [together, apart].map(|batch| model.training_gradients(&batch.seeing_latest_images(image, Some(eos))).unwrap());
    assert_eq!(together.n_labels, apart.n_labels);
    assert!((together.loss - apart.loss).abs() < 1e-4, "{} {}", together.loss, apart.loss);
    assert_eq!(together.gradients.iter().count(), apart.gradients.iter().count());
    for (tensor, gradient) in together.gradients.iter() {
        let other = apart.gradients.get(tensor).unwrap_or_else(|| panic!("`{tensor}` is missing"));
        let size = gradient.clone().abs().max().into_scalar::<f32>();
        let difference = (gradient.clone() - other.clone()).abs().max().into_scalar::<f32>();
        assert!(difference <= 1e-4 * size.max(1.0), "`{tensor}`");
    }
}
