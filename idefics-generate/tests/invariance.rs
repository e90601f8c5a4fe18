//! Changes of the input that must not affect the result, such as batching, and changes that must.

use std::num::NonZeroUsize;

use burn::tensor::{DType, Device};
use idefics_generate::processor::Sample;
use idefics_generate::{Idefics2, LogitsToKeep, Model, Prompts, VisionBatch};
use proptest::prelude::*;

use crate::common::{
    SAME, case, difference, greedy, load, never, next_logits, no_splitting, text_sample, xtask_folder,
};

const QUESTION: &str = "User:<image>and<image>What is this?<end_of_utterance>\nAssistant:";

/// Rows of different lengths with 0, 1 or 2 images.
fn rows() -> [Sample; 4] {
    [
        text_sample("User: Hello<end_of_utterance>\nAssistant:", &[]),
        text_sample("<image>", &["small.png"]),
        text_sample(QUESTION, &["wide.png", "tall.png"]),
        text_sample("User: Describe this picture in a few words.<image><end_of_utterance>\nAssistant:", &["wide.png"]),
    ]
}

#[test]
fn single_row_matches_batch() {
    for checkpoint in ["odd-heads", "wide-heads", "sliding-sharded"] {
        let model = load(checkpoint);
        let batch = next_logits(&model, &rows());
        for (row, sample) in rows().into_iter().enumerate() {
            let alone = next_logits(&model, &[sample]);
            assert!(difference(alone, batch.clone().narrow(0, row, 1)) <= SAME, "{checkpoint}, row {row}");
        }
    }
}

#[test]
fn cached_step_matches_recomputed_prompt() {
    for checkpoint in ["odd-heads", "wide-heads", "sliding-sharded"] {
        let model = load(checkpoint);
        let processed = model.processor().process(&rows(), &no_splitting()).unwrap();
        let images: Vec<_> = processed.images.iter().flatten().cloned().collect();
        let features = model.model().encode_images(&images).unwrap();
        let mut grown = processed.input_ids.clone();
        let prompts = Prompts::pad_left(&grown, 0).unwrap();
        let mut cache = model.model().cache(&prompts, 10);
        model.model().prefill(&prompts, features.clone(), &mut cache).unwrap();
        for step in 0..10 {
            let next: Vec<u32> = (0..grown.len()).map(|row| 20 + (row as u32 * 31 + step * 7) % 300).collect();
            let cached = model.model().decode(&next, &mut cache).unwrap();
            grown.iter_mut().zip(&next).for_each(|(row, &id)| row.push(id));
            let prompts = Prompts::pad_left(&grown, 0).unwrap();
            let mut empty = model.model().cache(&prompts, 0);
            let recomputed = model.model().prefill(&prompts, features.clone(), &mut empty).unwrap();
            assert!(difference(cached, recomputed) <= SAME, "{checkpoint}, step {step}");
        }
    }
}

#[test]
fn vision_batch_size_does_not_change_vectors() {
    for checkpoint in ["odd-heads", "idefics1-vector"] {
        let (_, samples) = match checkpoint {
            "odd-heads" => case("two-images"),
            first => case(first),
        };
        let model = load(checkpoint);
        let processed = model.processor().process(&samples, &no_splitting()).unwrap();
        // Each image occurs twice, so that several images have the same size.
        let images: Vec<_> =
            processed.images.iter().flatten().flat_map(|image| [image.clone(), image.clone()]).collect();
        let images: Vec<_> = images
            .into_iter()
            .enumerate()
            .map(|(index, mut image)| {
                image.pixels_mut()[index] += 1.0; // makes all images different
                image
            })
            .collect();
        let together = model.model().encode_images(&images).unwrap().unwrap().into_rows();
        for batch in [VisionBatch::Images(NonZeroUsize::MIN), VisionBatch::Bytes(0), VisionBatch::within(u64::MAX)] {
            let images: Vec<_> = images.iter().collect();
            let found = model.model().encode_in_stages(&images, batch, &mut |_| Ok(())).unwrap().unwrap().into_rows();
            assert!(difference(found, together.clone()) <= SAME, "{checkpoint}, {batch:?}");
        }
    }
}

#[test]
fn repeated_image_gets_same_vectors() {
    let model = load("odd-heads");
    let samples = [text_sample(QUESTION, &["wide.png", "tall.png"]), text_sample("<image>", &["wide.png"])];
    let processed = model.processor().process(&samples, &no_splitting()).unwrap();
    let images: Vec<_> = processed.images.iter().flatten().cloned().collect();
    let all = model.model().encode_images(&images).unwrap().unwrap();
    assert_eq!(all.n_images(), 3);
    for (index, (image, vectors)) in images.iter().zip(all.images()).enumerate() {
        let alone = model.model().encode_images(std::slice::from_ref(image)).unwrap().unwrap();
        assert!(difference(alone.into_rows(), vectors) <= SAME, "image {index}");
    }
}

#[test]
fn swapping_two_images_changes_the_logits() {
    let model = load("odd-heads");
    let logits = next_logits(&model, &[text_sample(QUESTION, &["wide.png", "tall.png"])]);
    let swapped = next_logits(&model, &[text_sample(QUESTION, &["tall.png", "wide.png"])]);
    assert!(difference(logits, swapped) > 1e-2);
}

#[test]
fn row_order_permutes_answers() {
    let model = load("odd-heads");
    let answers = model.generate(&rows(), &no_splitting(), &greedy(8), never()).unwrap();
    let mut reversed = rows();
    reversed.reverse();
    let reversed = model.generate(&reversed, &no_splitting(), &greedy(8), never()).unwrap();
    for (answer, reversed) in answers.iter().zip(reversed.iter().rev()) {
        assert_eq!(answer.token_ids, reversed.token_ids);
    }
}

#[test]
fn last_logits_match_all_logits() {
    let folder = xtask_folder("checkpoints/odd-heads");
    let model = Idefics2::from_folder(&folder, &Device::flex(), DType::F32, |_| ()).unwrap();
    let prompts = Prompts::pad_left(&[vec![1, 30, 40, 50], vec![1, 60]], 0).unwrap();
    let all = model.forward(&prompts, &[], LogitsToKeep::All).unwrap();
    let last = model.forward(&prompts, &[], LogitsToKeep::Last(2)).unwrap();
    assert!(difference(all.narrow(1, 2, 2), last) <= SAME);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn rows_of_any_lengths_are_independent(
        rows in prop::collection::vec(prop::collection::vec(3u32..470, 1..24), 1..5)
    ) {
        let folder = xtask_folder("checkpoints/sliding-sharded");
        let model = Idefics2::from_folder(&folder, &Device::flex(), DType::F32, |_| ()).unwrap();
        let last = |rows: &[Vec<u32>]| {
            model.forward(&Prompts::pad_left(rows, 0).unwrap(), &[], LogitsToKeep::Last(1)).unwrap()
        };
        let batch = last(&rows);
        for (row, ids) in rows.iter().enumerate() {
            let alone = last(std::slice::from_ref(ids));
            prop_assert!(difference(alone, batch.clone().narrow(0, row, 1)) <= SAME);
        }
    }

    #[test]
    fn padded_prompts_round_trip(rows in prop::collection::vec(prop::collection::vec(1u32..9, 1..6), 1..4)) {
        let prompts = Prompts::pad_left(&rows, 0).unwrap();
        let mask: Vec<bool> = prompts.input_ids().iter().map(|&id| id != 0).collect();
        let again = Prompts::from_padded(prompts.input_ids().to_vec(), &mask, prompts.seq()).unwrap();
        prop_assert_eq!(again, prompts);
    }
}
