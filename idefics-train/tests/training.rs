//! Training runs. Neither micro-batches nor restarts change the results, and a failure loses no data.

use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use idefics_generate::processor::image::ImageTile;
use idefics_generate::{ErrorKind, Idefics2, Idefics2Config, InputError, ModelConfig, Prompts};
use idefics_nn::{PackedWeight, ParameterMapper, ParameterVisitor, map_parameters, visit_parameters};
use idefics_train::{
    BatchError, LabelRecipe, LabelledText, LossGradients, Schedule, StepReport, TrainError, Trainable, Trainer,
    TrainingBatch, TrainingConfig, training_gradients_checkpointed,
};

use crate::xtask_folder;

pub(crate) fn folder(checkpoint: &str) -> PathBuf {
    xtask_folder("checkpoints").join(checkpoint)
}

pub(crate) fn config(name: &str) -> Idefics2Config {
    let config = ModelConfig::from_folder(&folder(name)).unwrap();
    config.downcast_ref::<Idefics2Config>().unwrap().clone()
}

pub(crate) fn model(name: &str) -> Idefics2 {
    Idefics2::from_folder(&folder(name), &Device::flex().autodiff(), burn::tensor::DType::F32, |_| ()).unwrap()
}

/// Creates left-padded rows with 0, 1 and 2 images of two sizes. Tokens and pixels depend on `seed`.
pub(crate) fn batch(config: &Idefics2Config, seed: u32) -> TrainingBatch {
    let latents = config.perceiver_config.resampler_n_latents;
    let patch = config.vision_config.patch_size;
    let image = |rows: usize, cols: usize| {
        let n_values = 3 * rows * cols * patch * patch;
        let pixels = (0..n_values).map(|i| ((i as u32 * 31 + seed) % 255) as f32 / 127.0 - 1.0);
        ImageTile::new(cols * patch, rows * patch, pixels.collect()).unwrap()
    };
    let word = |i: u32| 3 + (i * 17 + seed * 29) % 400;
    let row = |n_images: usize, n_words: u32| -> Vec<u32> {
        let images = std::iter::repeat_n(config.image_token_id, n_images * latents);
        std::iter::once(1).chain(images).chain((0..n_words).map(word)).collect()
    };
    let rows = [row(0, 5), row(1, 9), row(2, 3)];
    let prompts = Prompts::pad_left(&rows, 0).unwrap();
    let labels = (0..3).flat_map(|row| {
        let padding = prompts.left_padding()[row];
        let ids = prompts.row(row).to_vec();
        ids.into_iter().enumerate().map(move |(slot, id)| if slot <= padding { -100 } else { i64::from(id) })
    });
    TrainingBatch {
        labels: labels.collect(),
        images: vec![image(2, 3), image(3, 2), image(2, 3)],
        recipe: LabelRecipe::IgnoreImageTokens,
        prompts,
        parents: None,
    }
}

/// Creates a batch of one row that contains no images.
pub(crate) fn text_only() -> TrainingBatch {
    let text = LabelledText { ids: vec![1, 40, 41, 42, 43], labels: vec![-100, -100, 41, 42, 43] };
    TrainingBatch::padded(&[text], Vec::new(), LabelRecipe::IgnoreImageTokens, 0).unwrap()
}

/// Creates three texts about one image and three about two images. Returns them twice: as a batch of two branching
/// rows, and as a batch with one row per text.
fn branching(config: &Idefics2Config) -> [TrainingBatch; 2] {
    let recipe = LabelRecipe::IgnoreImageTokens;
    let pictures = batch(config, 3).images;
    let latents = config.perceiver_config.resampler_n_latents;
    let text = |n_images: usize, read: &[u32], learned: &[u32]| {
        let beginning = std::iter::once(1).chain(std::iter::repeat_n(config.image_token_id, n_images * latents));
        let ids: Vec<u32> = beginning.chain(read.iter().chain(learned).copied()).collect();
        let n_read = ids.len() - learned.len();
        let labels = ids.iter().enumerate().map(|(slot, &id)| if slot < n_read { -100 } else { i64::from(id) });
        LabelledText { labels: labels.collect(), ids }
    };
    let rows = [
        // The second text diverges from the first in the answer, the third in the question.
        vec![text(1, &[40, 41, 42], &[50, 51]), text(1, &[40, 41, 42], &[50, 52, 53]), text(1, &[40, 43], &[54])],
        vec![text(2, &[40, 44], &[55]), text(2, &[45, 46, 47, 48], &[56, 57]), text(2, &[40, 44, 49], &[58])],
    ];
    let one_image = &pictures[..1];
    let two_images = &pictures[1..];
    let together = TrainingBatch::branching(&rows, pictures.clone(), recipe, 0).unwrap();
    assert_eq!(together.prompts.batch(), 2);
    let apart = rows.concat();
    let images = [one_image, one_image, one_image, two_images, two_images, two_images].concat();
    [together, TrainingBatch::padded(&apart, images, recipe, 0).unwrap()]
}

/// Asserts that the gradients are equal up to rounding, and that every tensor of the model has one.
fn assert_same_gradients<M: Module>(name: &str, model: &M, kept: &LossGradients, other: &LossGradients) {
    assert_eq!(kept.gradients.iter().count(), weights(model).len(), "{name}: every tensor has a gradient");
    assert_close_gradients(name, kept, other);
}

/// Asserts that the same tensors have gradients and that these are equal up to rounding.
pub(crate) fn assert_close_gradients(name: &str, kept: &LossGradients, other: &LossGradients) {
    assert!((kept.loss - other.loss).abs() < 1e-4, "{name}: {} {}", kept.loss, other.loss);
    assert_eq!(kept.n_labels, other.n_labels);
    assert_eq!(kept.gradients.iter().count(), other.gradients.iter().count(), "{name}");
    for (tensor, gradient) in kept.gradients.iter() {
        let other = other.gradients.get(tensor).unwrap_or_else(|| panic!("{name}: `{tensor}` is missing"));
        let difference = (gradient.clone() - other.clone()).abs().max().into_scalar::<f32>();
        let size = gradient.clone().abs().max().into_scalar::<f32>();
        // The gradients are sums over about 30 labels. Without autodiff, attention uses another kernel.
        assert!(difference <= 1e-4 * size.max(1.0), "{name}: `{tensor}` differs by {difference} of {size}");
    }
}

pub(crate) fn run_config(steps: u64) -> TrainingConfig {
    TrainingConfig { learning_rate: 1e-2, schedule: Schedule::Cosine, warmup_steps: 1, ..TrainingConfig::new(steps) }
}

pub(crate) fn run(trainer: &mut Trainer<Idefics2>, steps: std::ops::Range<u32>) -> Vec<StepReport> {
    let config = trainer.module().config().clone();
    let step = |seed| {
        let batches = [batch(&config, seed), batch(&config, seed + 100)];
        trainer.step(&batches, Idefics2::training_gradients).unwrap()
    };
    steps.map(step).collect()
}

/// Returns the name and bytes of every parameter and every dequantised weight, for bitwise comparison.
pub(crate) fn weights<M: Module>(model: &M) -> Vec<(String, Vec<u8>)> {
    struct Collect(Vec<(String, Vec<u8>)>);
    impl ParameterVisitor for Collect {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            self.0.push((name.to_owned(), param.val().into_data().as_bytes().to_vec()));
        }

        fn visit_packed(&mut self, name: &str, weight: &PackedWeight) {
            self.0.push((name.to_owned(), weight.dequantize().into_data().as_bytes().to_vec()));
        }
    }
    let mut collect = Collect(Vec::new());
    visit_parameters(model, &mut collect);
    collect.0
}

/// Freezes the parameters whose names begin with one of these prefixes.
pub(crate) fn frozen<M: Module>(model: M, prefixes: &[&str]) -> M {
    struct Freeze<'a>(&'a [&'a str]);
    impl ParameterMapper for Freeze<'_> {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.set_require_grad(!self.0.iter().any(|prefix| name.starts_with(prefix)))
        }
    }
    map_parameters(model, &mut Freeze(prefixes))
}

#[test]
fn recomputing_layers_gives_the_same_gradients() {
    for name in ["small", "small-wide-heads", "odd-heads"] {
        let (model, config) = (model(name), config(name));
        let batch = batch(&config, 1);
        let kept = model.training_gradients(&batch).unwrap();
        let recomputed = training_gradients_checkpointed(&model, &batch).unwrap();
        assert_same_gradients(name, &model, &kept, &recomputed);
    }
}

#[test]
fn recomputing_with_frozen_parts_gives_the_same_gradients() {
    let config = config("small");
    let batch = batch(&config, 1);
    let texts = text_only();
    for prefixes in [
        &["model.vision_model."][..],
        &["model.vision_model.", "model.connector."],
        &["model.text_model.", "lm_head."],
        &["model.vision_model.", "model.connector.", "model.text_model.embed_tokens.", "model.text_model.layers.0."],
        &["model.", "lm_head."],
    ] {
        let model = frozen(model("small"), prefixes);
        for batch in [&batch, &texts] {
            let kept = model.training_gradients(batch).unwrap();
            assert_close_gradients(
                &prefixes.join(" "),
                &kept,
                &training_gradients_checkpointed(&model, batch).unwrap(),
            );
        }
    }
}

#[test]
fn branching_rows_match_separate_rows() {
    for name in ["small", "small-wide-heads", "odd-heads"] {
        let (model, config) = (model(name), config(name));
        let [together, apart] = branching(&config);
        assert!(together.prompts.input_ids().len() < apart.prompts.input_ids().len());
        let expected = model.training_gradients(&apart).unwrap();
        assert_same_gradients(name, &model, &expected, &model.training_gradients(&together).unwrap());
        assert_same_gradients(name, &model, &expected, &training_gradients_checkpointed(&model, &together).unwrap());
    }
}

#[test]
fn rejects_row_without_tokens() {
    let text = LabelledText { ids: vec![1, 2], labels: vec![-100, 2] };
    for empty in [vec![], vec![LabelledText { ids: vec![], labels: vec![] }]] {
        let rows = [vec![text.clone()], empty];
        let refused = TrainingBatch::branching(&rows, Vec::new(), LabelRecipe::IgnoreImageTokens, 0).unwrap_err();
        assert_eq!(refused, InputError::Empty { row: 1 }.into());
    }
}

#[test]
fn only_frozen_parameters_are_unchanged() {
    let frozen = vec!["model.vision_model.".to_owned(), "lm_head.".to_owned()];
    let mut trainer = Trainer::new(model("small"), TrainingConfig { frozen, ..run_config(3) }).unwrap();
    let before = weights(trainer.module());
    run(&mut trainer, 0..3);
    for ((name, before), (_, after)) in before.iter().zip(&weights(trainer.module())) {
        let is_frozen = name.starts_with("model.vision_model.") || name.starts_with("lm_head.");
        assert_eq!(before == after, is_frozen, "`{name}`");
    }
}

#[test]
fn tied_head_and_embedding_stay_equal() {
    let tied = config("grid-70").tied().iter().map(|(tied, source)| ((*tied).to_owned(), (*source).to_owned()));
    let mut trainer = Trainer::new(model("grid-70"), TrainingConfig { tied: tied.collect(), ..run_config(3) }).unwrap();
    run(&mut trainer, 0..3);
    let weights = weights(trainer.module());
    let bits = |name: &str| &weights.iter().find(|(found, _)| found == name).unwrap().1;
    assert_eq!(bits("lm_head.weight"), bits("model.text_model.embed_tokens.weight"));
}

#[test]
fn number_of_workers_does_not_change_results() {
    let results = [1, 2, 3].map(|workers| {
        let mut trainer = Trainer::new(model("small"), TrainingConfig { workers, ..run_config(3) }).unwrap();
        let reports = run(&mut trainer, 0..3);
        (reports, weights(trainer.module()))
    });
    assert!(results[0] == results[1] && results[1] == results[2]);
}

#[test]
fn two_micro_batches_match_one_batch() {
    let config = config("small");
    let (one, other) = (batch(&config, 1), batch(&config, 2));
    let model = model("small");
    let mut sum = model.training_gradients(&one).unwrap();
    let other = model.training_gradients(&other).unwrap();
    sum.gradients.accumulate(other.gradients);
    sum.gradients.scale(1.0 / (sum.n_labels + other.n_labels) as f64);
    let mut trainer = Trainer::new(model, run_config(3)).unwrap();
    let report = trainer.step(&[batch(&config, 1), batch(&config, 2)], Idefics2::training_gradients).unwrap();
    assert!((report.grad_norm - sum.gradients.norm()).abs() < 1e-5);
}

#[test]
fn killed_run_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = Trainer::new(model("small"), run_config(6)).unwrap();
    let reports = run(&mut whole, 0..6);

    let mut first = Trainer::new(model("small"), run_config(6)).unwrap();
    run(&mut first, 0..2);
    first.save(folder.path()).unwrap();
    run(&mut first, 2..4); // these two steps are not saved
    drop(first);
    let mut second = resume(folder.path()).unwrap().unwrap();
    assert_eq!(second.steps_done(), 2);
    assert_eq!(run(&mut second, 2..6), reports[2..]);
    assert_eq!(weights(second.module()), weights(whole.module()));
}

/// Resumes with a randomly initialised model, so that all weights must come from the checkpoint.
pub(crate) fn resume(folder: &Path) -> Result<Option<Trainer<Idefics2>>, TrainError> {
    let device = Device::flex().autodiff();
    let fresh = Idefics2::new(&config("small"), &device).unwrap();
    Trainer::resume(fresh, run_config(6), folder, &Device::flex())
}

#[test]
fn interrupted_save_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(model("small"), run_config(6)).unwrap();
    run(&mut trainer, 0..1);
    trainer.save(folder.path()).unwrap();
    // This is the state if the process is killed during the second save.
    let half = folder.path().join("step-00000002.tmp");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("model.safetensors"), b"half").unwrap();
    assert_eq!(resume(folder.path()).unwrap().unwrap().steps_done(), 1);
    run(&mut trainer, 1..2);
    trainer.save(folder.path()).unwrap();
    assert_eq!(resume(folder.path()).unwrap().unwrap().steps_done(), 2);
    for step in 2..5 {
        run(&mut trainer, step..step + 1);
        trainer.save(folder.path()).unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["latest", "step-00000004", "step-00000005"]);
}

#[test]
fn failed_save_is_a_file_system_error_and_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(model("small"), run_config(6)).unwrap();
    run(&mut trainer, 0..1);
    trainer.save(folder.path()).unwrap();
    run(&mut trainer, 1..2);
    // A file in place of the folder of the next checkpoint makes the save fail for any user.
    std::fs::write(folder.path().join("step-00000002.tmp"), b"").unwrap();
    let error = trainer.save(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileSystem, "{error}");
    assert!(error.to_string().contains("step-00000002.tmp"), "{error}");
    assert_eq!(resume(folder.path()).unwrap().unwrap().steps_done(), 1);
}

#[test]
fn rejects_damaged_checkpoints_and_checkpoints_of_other_runs() {
    let folder = tempfile::tempdir().unwrap();
    assert!(resume(folder.path()).unwrap().is_none());
    let mut trainer = Trainer::new(model("small"), run_config(6)).unwrap();
    run(&mut trainer, 0..1);
    let saved = trainer.save(folder.path()).unwrap();

    let other = TrainingConfig { learning_rate: 1.0, ..run_config(6) };
    let fresh = Idefics2::new(&config("small"), &Device::flex().autodiff()).unwrap();
    let error = Trainer::resume(fresh, other, folder.path(), &Device::flex()).unwrap_err();
    assert!(matches!(&error, TrainError::OtherRun { field, .. } if field == "learning_rate"), "{error}");

    let optimizer = saved.join("optimizer.safetensors");
    let bytes = std::fs::read(&optimizer).unwrap();
    std::fs::write(&optimizer, &bytes[..bytes.len() / 2]).unwrap();
    let error = resume(folder.path()).unwrap_err();
    assert!(error.to_string().contains("optimizer.safetensors"), "{error}");
    std::fs::write(folder.path().join("latest"), "../elsewhere").unwrap();
    let error = resume(folder.path()).unwrap_err();
    assert!(matches!(error, TrainError::State { .. }), "{error}");
}

#[test]
fn skips_non_finite_steps_and_aborts_after_ten() {
    let mut trainer = Trainer::new(model("small"), run_config(30)).unwrap();
    let batch = batch(&config("small"), 1);
    let nan = |model: &Idefics2, batch: &TrainingBatch| -> Result<LossGradients, BatchError> {
        Ok(LossGradients { loss: f64::NAN, ..model.training_gradients(batch)? })
    };
    run(&mut trainer, 0..1);
    let before = weights(trainer.module());
    for _ in 0..9 {
        let report = trainer.step(std::slice::from_ref(&batch), nan).unwrap();
        assert!(!report.applied);
    }
    assert_eq!(before, weights(trainer.module()));
    assert!(run(&mut trainer, 1..2)[0].applied);
    for _ in 0..9 {
        trainer.step(std::slice::from_ref(&batch), nan).unwrap();
    }
    let error = trainer.step(std::slice::from_ref(&batch), nan).unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { step: 20, skipped: 10 }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Numeric);
}

#[test]
fn rejects_module_on_device_without_autodiff() {
    let plain = Idefics2::new(&config("small"), &Device::flex()).unwrap();
    let error = Trainer::new(plain, run_config(1)).unwrap_err();
    assert!(matches!(&error, TrainError::Device { parameter } if parameter.starts_with("model.")), "{error}");
}
