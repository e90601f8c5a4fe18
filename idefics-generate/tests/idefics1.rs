//! IDEFICS v1, which attends to images by cross-attention, tested through the same functions as the other families.

use std::path::Path;

use burn::tensor::{DType, Device};
use idefics_checkpoint::PicklePolicy;
use idefics_generate::bench::{BenchOptions, BenchProcessors, BenchVideo};
use idefics_generate::inspect::inspect;
use idefics_generate::processor::image::ImageTile;
use idefics_generate::processor::{Content, Message, Sample};
use idefics_generate::{
    Conversation, DeviceChoice, Idefics, Idefics1, Idefics1Config, InputError, LogitsToKeep, Model, ModelConfig,
    Prompts, RankOptions, VisionBatch, WeightOptions,
};
use serde_json::{Value, json};

use crate::common::{SAME, difference, greedy, never, no_splitting, picture, xtask_folder};

const MODELS: [&str; 5] = ["idefics1-float", "idefics1-vector", "idefics1-patches", "idefics1-plain", "idefics1-tied"];

fn load(checkpoint: &str) -> Idefics {
    load_as(checkpoint, DType::F32.into())
}

fn load_as(checkpoint: &str, weights: WeightOptions) -> Idefics {
    let weights = WeightOptions { pickles: PicklePolicy::Allowed, ..weights };
    Idefics::from_folder(&xtask_folder("checkpoints").join(checkpoint), &Device::flex(), weights, |_| ()).unwrap()
}

fn quantized(format: &str) -> WeightOptions {
    WeightOptions { quantize: format.parse().unwrap(), ..WeightOptions::default() }
}

fn prompt(parts: &[Value]) -> Sample {
    serde_json::from_value(json!({"prompt": parts})).unwrap()
}

fn image(name: &str) -> Value {
    json!({"image": picture(name)})
}

/// Rows with two images, no image and one image.
fn rows() -> Vec<Sample> {
    vec![
        prompt(&[json!("User:"), image("wide.png"), json!("and"), image("tall.png"), json!("Compare these.")]),
        prompt(&[json!("User: Hello")]),
        prompt(&[image("small.png"), json!("What is this?")]),
    ]
}

/// Prompts and image tiles of samples.
fn inputs(model: &Idefics, samples: &[Sample]) -> (Prompts, Vec<ImageTile>) {
    let processed = model.processor().process(samples, &Default::default()).unwrap();
    let tokenizer = model.processor().tokenizer();
    let prompts = Prompts::pad_left(&processed.input_ids, 0).unwrap();
    let prompts = prompts.attend_to_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id());
    (prompts, processed.images.into_iter().flatten().collect())
}

fn next_logits(model: &Idefics, samples: &[Sample]) -> burn::tensor::Tensor<2> {
    let (prompts, images) = inputs(model, samples);
    let features = model.model().encode_images(&images).unwrap();
    let mut cache = model.model().cache(&prompts, 0);
    model.model().prefill(&prompts, features, &mut cache).unwrap()
}

#[test]
fn single_row_matches_batch() {
    for checkpoint in MODELS {
        let model = load(checkpoint);
        let batch = next_logits(&model, &rows());
        for (row, sample) in rows().into_iter().enumerate() {
            let alone = next_logits(&model, &[sample]);
            assert!(difference(alone, batch.clone().narrow(0, row, 1)) <= SAME, "{checkpoint}, row {row}");
        }
    }
}

#[test]
fn quantised_single_row_matches_batch() {
    for format in ["int8", "nf4", "fp4", "q4"] {
        let model = load_as("idefics1-float", quantized(format));
        let batch = next_logits(&model, &rows());
        let exact = next_logits(&load("idefics1-float"), &rows());
        assert!(difference(batch.clone(), exact) > SAME, "{format} must differ from f32");
        for (row, sample) in rows().into_iter().enumerate() {
            let alone = next_logits(&model, std::slice::from_ref(&sample));
            assert!(difference(alone, batch.clone().narrow(0, row, 1)) <= SAME, "{format}, row {row}");
        }
        let together = model.generate(&rows(), &Default::default(), &greedy(6), never()).unwrap();
        for (sample, answer) in rows().into_iter().zip(together) {
            let alone = model.generate(&[sample], &Default::default(), &greedy(6), never()).unwrap().remove(0);
            assert!(!answer.token_ids.is_empty());
            assert_eq!(alone.token_ids, answer.token_ids, "{format}");
        }
    }
}

#[test]
fn head_is_not_quantised_by_default() {
    let bytes = |weights| {
        let config = ModelConfig::from_folder(&xtask_folder("checkpoints/idefics1-float")).unwrap();
        config.memory(None, &Device::flex(), weights).unwrap().total()
    };
    let whole = bytes(WeightOptions { quantize_head: true, ..quantized("nf4") });
    let spared = bytes(quantized("nf4"));
    let without_vision = bytes(WeightOptions { quantize_vision: false, ..quantized("nf4") });
    assert!(whole < spared && spared < without_vision, "{whole} {spared} {without_vision}");
}

#[test]
fn stored_dtype_matches_f32() {
    for checkpoint in MODELS {
        let as_stored = load_as(checkpoint, WeightOptions::default());
        let exact = load(checkpoint);
        let [stored, widened] = [&as_stored, &exact].map(|model| next_logits(model, &rows()));
        assert!(difference(stored, widened) <= SAME, "{checkpoint}");
    }
    let folder = xtask_folder("checkpoints/idefics1-vector");
    let [stored, widened] = [WeightOptions::default(), DType::F32.into()].map(|weights| {
        let model = Idefics1::from_folder(&folder, &Device::flex(), weights, |_| ()).unwrap();
        let tile = ImageTile::new(48, 36, vec![0.5; 3 * 48 * 36]).unwrap();
        model.interpolate_pos_encoding(true).encode_images(&[tile]).unwrap().unwrap().into_rows()
    });
    assert!(difference(stored, widened) <= SAME, "positions must be interpolated in f32");
}

#[test]
fn benchmarks_random_models_in_all_formats() {
    let config = ModelConfig::from_folder(&xtask_folder("checkpoints/idefics1-float")).unwrap();
    let processors = BenchProcessors::new(config.family().image_processor().unwrap(), None);
    let device = Device::flex();
    for weights in [WeightOptions::default(), quantized("int8"), quantized("nf4"), quantized("q4")] {
        let model = config.random_model(&device, weights, 7, |_| ()).unwrap();
        let planned = config.memory(None, &device, weights).unwrap();
        assert_eq!(model.weight_bytes() as u64, planned.total(), "{weights}");
        let measure = |images: Vec<(u32, u32)>, videos: Vec<BenchVideo>| {
            let options = BenchOptions {
                images,
                videos,
                prompt_tokens: 9,
                new_tokens: 2,
                batch: 2,
                runs: 1,
                profile: true,
                graph_capture: None,
                vision_batch: VisionBatch::default(),
            };
            config.bench(&*model, &processors, &options, |_| ())
        };
        let seeing = measure(vec![(40, 30), (20, 20)], Vec::new()).unwrap();
        let blind = measure(Vec::new(), Vec::new()).unwrap();
        assert_eq!((seeing.tiles, blind.tiles), (4, 0));
        let video = BenchVideo { width: 20, height: 20, frames: 2 };
        let error = measure(Vec::new(), vec![video]).unwrap_err().to_string();
        assert!(error.contains("`model_type` idefics cannot read videos"), "{error}");
        assert!(seeing.vision_ms.min > 0.0 && seeing.decode_ms_per_token.min > 0.0);
        assert!(
            seeing.decode_bytes_per_token > blind.decode_bytes_per_token,
            "{weights}: steps that see images must read the gated attention"
        );
        assert!(blind.decode_bytes_per_token > 0);
    }
}

#[test]
fn cached_step_matches_recomputed_prompt() {
    for checkpoint in MODELS {
        let model = load(checkpoint);
        let (prompts, images) = inputs(&model, &rows());
        let features = model.model().encode_images(&images).unwrap();
        let tokenizer = model.processor().tokenizer();
        let mut grown: Vec<Vec<u32>> =
            (0..3).map(|row| prompts.row(row)[prompts.left_padding()[row]..].to_vec()).collect();
        let mut cache = model.model().cache(&prompts, 5);
        model.model().prefill(&prompts, features.clone(), &mut cache).unwrap();
        for step in 0..5 {
            let next: Vec<u32> = (0..3).map(|row| 20 + (row * 31 + step * 7) % 300).collect();
            let cached = model.model().decode(&next, &mut cache).unwrap();
            grown.iter_mut().zip(&next).for_each(|(row, &id)| row.push(id));
            let prompts = Prompts::pad_left(&grown, 0).unwrap();
            let prompts = prompts.attend_to_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id());
            let mut empty = model.model().cache(&prompts, 0);
            let recomputed = model.model().prefill(&prompts, features.clone(), &mut empty).unwrap();
            // A single token and a whole prompt are summed in different orders, so the rounding error scales with
            // the logits.
            let size = recomputed.clone().abs().max().into_scalar::<f32>();
            let far = difference(cached, recomputed);
            assert!(far <= SAME * size.max(1.0), "{checkpoint}, step {step}: {far:e} of {size}");
        }
    }
}

#[test]
fn earlier_image_matters_through_tokens_between() {
    let model = load("idefics1-vector");
    let ask = |first: &str, second: &str| {
        next_logits(&model, &[prompt(&[image(first), json!("and"), image(second), json!("What?")])])
    };
    let base = ask("wide.png", "tall.png");
    assert!(difference(base.clone(), ask("wide.png", "small.png")) > 1e-3, "the latest image must matter");
    assert!(
        difference(base, ask("small.png", "tall.png")) > 1e-4,
        "the first image must matter through the tokens between"
    );
}

#[test]
fn image_before_end_token_is_not_visible() {
    let model = load("idefics1-vector");
    let ask = |name: &str| next_logits(&model, &[prompt(&[image(name), json!("A.</s>B")])]);
    let (prompts, _) = inputs(&model, &[prompt(&[image("wide.png"), json!("A.</s>B")])]);
    let seen = prompts.seen_images().unwrap().view().seen();
    assert!(seen.contains(&true) && !seen[seen.len() - 1]);
    // The image still has an effect through the tokens before the end token.
    assert!(difference(ask("wide.png"), ask("tall.png")) > 0.0);
}

#[test]
fn batch_answers_match_single_rows() {
    let model = load("idefics1-float");
    let together = model.generate(&rows(), &Default::default(), &greedy(8), never()).unwrap();
    for (row, sample) in rows().into_iter().enumerate() {
        let alone = model.generate(std::slice::from_ref(&sample), &Default::default(), &greedy(8), never()).unwrap();
        assert_eq!(alone[0].token_ids, together[row].token_ids, "row {row}");
        let mut streamed = String::new();
        model
            .generate_streaming(&sample, &Default::default(), &greedy(8), never(), |chunk| streamed.push_str(chunk))
            .unwrap();
        assert_eq!(streamed, together[row].text, "row {row}");
    }
    assert_eq!(together.iter().map(|answer| answer.usage.image_tokens).collect::<Vec<_>>(), [2, 0, 1]);
}

#[test]
fn ranking_together_matches_ranking_alone() {
    let model = load("idefics1-vector");
    let sample = prompt(&[image("wide.png"), json!("Category:")]);
    let labels = ["a dog", "the cat", "cars"].map(str::to_owned);
    let together = model.rank(&sample, &labels, &Default::default(), RankOptions::default(), &never()).unwrap();
    for label in &labels {
        let alone = model
            .rank(&sample, std::slice::from_ref(label), &Default::default(), RankOptions::default(), &never())
            .unwrap();
        let found = together.labels.iter().find(|ranked| ranked.label == *label).unwrap();
        assert!((found.log_likelihood - alone.labels[0].log_likelihood).abs() < 1e-4, "{label}");
    }
}

#[test]
fn turn_computes_only_new_tokens_and_images() {
    let model = load("idefics1-vector");
    let mut talk = Conversation::new(&model, no_splitting());
    let question =
        |name: &str| vec![Content::image(Path::new(&picture(name)).to_owned()), Content::text("What is it?")];
    let mut ask = |content: Vec<Content>, back: Option<usize>| {
        if let Some(back) = back {
            talk.messages_mut().truncate(back);
        }
        let mut asked = talk.messages().to_vec();
        asked.push(Message::new("user", content.clone()));
        let answer = talk.ask(content, &greedy(5), never(), |_| ()).unwrap();
        let sample = Sample::chat(asked);
        let fresh = model.generate(&[sample], &no_splitting(), &greedy(5), never()).unwrap().remove(0);
        assert_eq!(answer.token_ids, fresh.token_ids, "the cache must not change the answer");
        (answer.usage.prompt_tokens, talk.computed_tokens())
    };
    let (first, computed) = ask(question("small.png"), None);
    assert_eq!(computed, first);
    let (second, computed) = ask(question("wide.png"), None);
    assert!(computed < second - first + 8, "{computed} of {second} tokens computed, {first} were cached");
    // Replace the second question and its image.
    let (third, computed) = ask(question("tall.png"), Some(2));
    assert!(computed < third, "{computed} of {third} tokens computed");
    let (fourth, computed) = ask(vec![Content::text("Why?")], Some(2));
    assert!(computed <= fourth - first + 8, "{computed} of {fourth} tokens computed");
}

#[test]
fn base_model_rejects_chat() {
    let model = load("idefics1-float");
    assert!(!model.processor().can_chat() && load("idefics1-vector").processor().can_chat());
    let sample = Sample::chat(vec![Message::text("user", "Hello")]);
    let error = model.generate(&[sample], &Default::default(), &greedy(2), never()).unwrap_err();
    assert!(error.to_string().contains("chat template"), "{error}");
}

#[test]
fn rejects_mismatched_inputs() {
    let folder = xtask_folder("checkpoints/idefics1-float");
    let model = Idefics1::from_folder(&folder, &Device::flex(), DType::F32, |_| ()).unwrap();
    let tile = |side: usize| ImageTile::new(side, side, vec![0.5; 3 * side * side]).unwrap();
    let image = load("idefics1-float").processor().tokenizer().image_token_id();
    let prompts = Prompts::pad_left(&[vec![1, image, 5]], 0).unwrap().attend_to_latest_images(image, Some(2));
    let refused =
        |prompts: &Prompts, images: &[ImageTile]| model.forward(prompts, images, LogitsToKeep::All).unwrap_err();
    assert_eq!(
        refused(&prompts, &[tile(56)]),
        InputError::ImageSize { image_idx: 0, width: 56, height: 56, expected: 28 }
    );
    assert_eq!(refused(&prompts, &[]), InputError::ImageCount { shown: 1, images: 0 });
    assert_eq!(refused(&prompts, &[tile(28), tile(28)]), InputError::ImageCount { shown: 1, images: 2 });
    let too_large = Prompts::pad_left(&[vec![1, model.shape().vocab_size as u32]], 0).unwrap();
    assert!(matches!(refused(&too_large, &[]), InputError::TokenId { .. }));

    let larger = model.interpolate_pos_encoding(true);
    let logits = larger.forward(&prompts, &[tile(56)], LogitsToKeep::Last(1)).unwrap();
    assert_eq!(logits.dims(), [1, 1, larger.shape().vocab_size]);
}

/// With interpolated positions, images may have different sizes. A resampler gives each image the same number of
/// vectors. Without a resampler, the gated layers cannot handle such images together.
#[test]
fn images_of_two_sizes_need_a_resampler() {
    let load = |checkpoint: &str| {
        let weights = WeightOptions { pickles: PicklePolicy::Allowed, ..DType::F32.into() };
        let folder = xtask_folder("checkpoints").join(checkpoint);
        Idefics1::from_folder(&folder, &Device::flex(), weights, |_| ()).unwrap().interpolate_pos_encoding(true)
    };
    let tile = |width: usize, height: usize| {
        let pixels = (0..3 * width * height).map(|index| (index % 13) as f32 / 13.0).collect();
        ImageTile::new(width, height, pixels).unwrap()
    };
    let image = 9;
    let prompts = |rows: &[Vec<u32>]| Prompts::pad_left(rows, 0).unwrap().attend_to_latest_images(image, None);
    let rows = [vec![5, image, 6, image, 7], vec![image, 8]];

    let model = load("idefics1-vector"); // patches of 6 pixels
    let images = [tile(36, 30), tile(30, 30), tile(24, 48)];
    let together = model.forward(&prompts(&rows), &images, LogitsToKeep::Last(1)).unwrap();
    for (row, images) in [&images[..2], &images[2..]].into_iter().enumerate() {
        let alone = model.forward(&prompts(&rows[row..=row]), images, LogitsToKeep::Last(1)).unwrap();
        assert!(difference(alone, together.clone().narrow(0, row, 1)) <= SAME, "row {row}");
    }

    let model = load("idefics1-patches"); // also patches of 6 pixels; the class token is one more vector
    let images = [tile(24, 24), tile(30, 24), tile(24, 24)];
    let error = model.forward(&prompts(&rows), &images, LogitsToKeep::Last(1)).unwrap_err();
    assert_eq!(error, InputError::VectorCount { image_idx: 1, vectors: 21, expected: 17 });

    // A later image with another number of vectors is rejected, and the cache keeps its images.
    let first = prompts(&[vec![5, image, 6]]);
    let mut cache = model.cache(&first, 4);
    model.prefill(&first, model.encode_images(&images[..1]).unwrap(), &mut cache).unwrap();
    let next = prompts(&[vec![5, image, 6, image, 7]]).skip_prefix(3, 1);
    let error = model.prefill(&next, model.encode_images(&images[1..2]).unwrap(), &mut cache).unwrap_err();
    assert_eq!(error, InputError::VectorCount { image_idx: 0, vectors: 21, expected: 17 });
    assert_eq!(cache.context().unwrap().n_parts(), 1);
}

#[test]
fn configs_match_public_parameter_counts() {
    for (name, config, parameters, tensors) in [
        ("idefics-9b", Idefics1Config::idefics_9b(), 8_929_679_632_usize, 1015),
        ("idefics-80b", Idefics1Config::idefics_80b(), 79_967_843_624, 1603),
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shapes").join(name);
        let path = folder.join("config.json");
        let read = ModelConfig::from_folder(&folder).unwrap();
        assert_eq!(read.downcast_ref::<Idefics1Config>(), Some(&config));
        // The path may be the file itself, or a folder without weights.
        for path in [&path, &folder] {
            let inspection = inspect(path, PicklePolicy::Refused, DeviceChoice::Cpu, &Device::flex()).unwrap();
            assert_eq!(inspection.parameters, parameters);
            assert_eq!(inspection.parts.iter().map(|part| part.tensors).sum::<usize>(), tensors);
            assert_eq!((inspection.family, inspection.image_tokens, inspection.files.len()), ("idefics", 64, 0));
        }
    }
}
