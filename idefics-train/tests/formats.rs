//! Training of models with 16-bit and quantised weights.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_generate::{Idefics1, Idefics2, Idefics3, WeightFormat, WeightOptions};
use idefics_nn::{PackedFormat, PackedWeight, ParameterMapper, ParameterVisitor, map_parameters, visit_parameters};
use idefics_train::{
    Gradients, Segments, Trainable, Trainer, TrainingBatch, TrainingConfig, training_gradients_checkpointed,
};

use crate::training::{assert_close_gradients, batch, config, folder, run, run_config, weights};
use crate::{idefics1, idefics3};

fn idefics2(name: &str, weights: impl Into<WeightOptions>) -> Idefics2 {
    Idefics2::from_folder(&folder(name), &Device::flex().autodiff(), weights, |_| ()).unwrap()
}

/// Returns options that quantise all linear layers except the head.
fn quantized(format: PackedFormat) -> WeightOptions {
    WeightOptions { quantize: WeightFormat::Packed(format), ..DType::F32.into() }
}

/// Returns the dtype of every parameter and the format of every quantised weight.
fn formats<M: Module>(module: &M) -> Vec<(String, String)> {
    struct Formats(Vec<(String, String)>);
    impl ParameterVisitor for Formats {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            self.0.push((name.to_owned(), format!("{:?}", param.val().dtype())));
        }

        fn visit_packed(&mut self, name: &str, weight: &PackedWeight) {
            self.0.push((name.to_owned(), weight.format().name().to_owned()));
        }
    }
    let mut formats = Formats(Vec::new());
    visit_parameters(module, &mut formats);
    formats.0
}

/// Computes the cosine of the angle between all gradients of two models.
fn cosine(one: &Gradients, other: &Gradients) -> f64 {
    let mut dot = 0.0;
    for (name, gradient) in one.iter() {
        dot += (gradient.clone() * other.get(name).unwrap().clone()).sum().into_scalar::<f64>();
    }
    dot / (one.norm() * other.norm())
}

/// Trains a model in a 16-bit dtype for a few steps.
fn train_in_16_bits<M: Segments + Sync>(name: &str, dtype: DType, model: M, exact: &M, batch: &TrainingBatch) {
    let before = formats(&model);
    // On the CPU, only matrices are in 16 bits.
    let is_held = |(_, held): &&(String, String)| *held == format!("{dtype:?}");
    assert!(before.iter().filter(is_held).count() > 10, "{name}: {before:?}");
    let expected = exact.training_gradients(batch).unwrap();
    for found in [model.training_gradients(batch), training_gradients_checkpointed(&model, batch)] {
        let found = found.unwrap();
        assert!(found.gradients.iter().all(|(_, gradient)| gradient.dtype() == DType::F32));
        assert!((found.loss / expected.loss - 1.0).abs() < 0.02, "{name} {}, {}", found.loss, expected.loss);
        let cosine = cosine(&found.gradients, &expected.gradients);
        assert!(cosine > 0.99, "{name} in {dtype:?}: the cosine of the gradients is {cosine}");
    }
    let mut trainer = Trainer::new(model, run_config(8)).unwrap();
    let losses: Vec<f64> = (0..8)
        .map(|_| {
            let report = trainer.step(std::slice::from_ref(batch), M::training_gradients).unwrap();
            assert!(report.applied && report.grad_norm > 0.0);
            report.loss
        })
        .collect();
    assert!(losses[7] < 0.9 * losses[0], "{name} in {dtype:?}: {losses:?}");
    assert_eq!(formats(trainer.module()), before, "{name}");
}

#[test]
fn models_in_16_bits_learn_and_keep_their_dtype() {
    let device = Device::flex().autodiff();
    for dtype in [DType::BF16, DType::F16] {
        let name = "small";
        train_in_16_bits(name, dtype, idefics2(name, dtype), &idefics2(name, DType::F32), &batch(&config(name), 1));
        let load = |dtype: DType| Idefics3::from_folder(&folder("tiny-smolvlm"), &device, dtype, |_| ()).unwrap();
        let exact = load(DType::F32);
        train_in_16_bits("tiny-smolvlm", dtype, load(dtype), &exact, &idefics3::batches(&exact)[1]);
        let load = |dtype: DType| Idefics1::from_folder(&folder("idefics1-small"), &device, dtype, |_| ()).unwrap();
        let exact = load(DType::F32);
        train_in_16_bits("idefics1-small", dtype, load(dtype), &exact, &idefics1::batches(&exact)[1]);
    }
}

/// Saves after two of four steps, resumes with each of `modules`, and compares the result with an uninterrupted run.
fn assert_resumes(start: &Idefics2, modules: Vec<Idefics2>) {
    let saved = tempfile::tempdir().unwrap();
    let mut whole = Trainer::new(start.clone(), run_config(4)).unwrap();
    run(&mut whole, 0..2);
    let middle = formats(whole.module());
    assert_eq!(middle, formats(start));
    whole.save(saved.path()).unwrap();
    let reports = run(&mut whole, 2..4);
    for module in modules {
        let mut resumed = Trainer::resume(module, run_config(4), saved.path(), &Device::flex()).unwrap().unwrap();
        assert_eq!(formats(resumed.module()), middle);
        assert_eq!(run(&mut resumed, 2..4), reports);
        assert_eq!(weights(resumed.module()), weights(whole.module()));
    }
}

/// Creates a model into which nothing was loaded.
fn empty() -> Idefics2 {
    Idefics2::new(&config("small"), &Device::flex().autodiff()).unwrap()
}

#[test]
fn run_with_bf16_weights_resumes_bit_for_bit() {
    let start = idefics2("small", DType::BF16);
    assert_resumes(&start, vec![empty(), start.clone(), idefics2("small", DType::F32)]);
}

#[test]
fn run_with_quantised_weights_resumes_bit_for_bit() {
    for format in PackedFormat::ALL {
        let start = idefics2("small", quantized(format));
        assert!(formats(&start).iter().any(|(_, held)| held == format.name()));
        let others = [empty(), idefics2("small", DType::F32), idefics2("small", quantized(PackedFormat::Int8))];
        assert_resumes(&start, [start.clone()].into_iter().chain(others).collect());
    }
}

#[test]
fn frozen_bf16_matrices_below_trained_f32_stay_bf16() {
    struct Halve;
    impl ParameterMapper for Halve {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !is_halved(name) {
                return param;
            }
            param.map(|value| value.detach().cast(DType::BF16)).set_require_grad(false)
        }
    }
    fn is_halved(name: &str) -> bool {
        name.starts_with("model.text_model.layers.") && name.ends_with("proj.weight")
    }
    let start = map_parameters(idefics2("small", DType::F32), &mut Halve);
    for (name, held) in formats(&start) {
        assert_eq!(held == "BF16", is_halved(&name), "{name}");
    }
    let config = TrainingConfig {
        frozen: formats(&start).into_iter().map(|(name, _)| name).filter(|name| is_halved(name)).collect(),
        ..run_config(4)
    };
    let data = batch(start.config(), 1);
    let recomputed = training_gradients_checkpointed(&start, &data).unwrap();
    assert_close_gradients("bf16 below f32", &start.training_gradients(&data).unwrap(), &recomputed);

    let saved = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(start.clone(), config.clone()).unwrap();
    run(&mut trainer, 0..2);
    trainer.save(saved.path()).unwrap();
    let mut resumed = Trainer::resume(empty(), config, saved.path(), &Device::flex()).unwrap().unwrap();
    assert_eq!(formats(resumed.module()), formats(&start));
    assert_eq!(run(&mut resumed, 2..4), run(&mut trainer, 2..4));
    assert_eq!(weights(resumed.module()), weights(trainer.module()));
}

/// Replaces quantised weights by dense ones with the same values, and freezes them.
struct Dequantize;

impl ModuleMapper for Dequantize {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.reparameterization::<PackedWeight>() {
            Some(_) => param.map(|value| value.autodiff()),
            None => param,
        }
    }
}

fn assert_packed_gradients_match_dense<M: Segments>(name: &str, model: &M, batch: &TrainingBatch) {
    let dense = model.clone().map(&mut Dequantize);
    assert!(formats(&dense).iter().all(|(_, format)| format == "F32"));
    let expected = dense.training_gradients(batch).unwrap();
    assert!(expected.gradients.iter().count() > 0);
    assert_close_gradients(name, &expected, &model.training_gradients(batch).unwrap());
    assert_close_gradients(name, &expected, &training_gradients_checkpointed(model, batch).unwrap());
}

#[test]
fn gradients_through_quantised_weights_match_dequantised_weights() {
    let device = Device::flex().autodiff();
    for format in PackedFormat::ALL {
        let weights = quantized(format);
        assert_packed_gradients_match_dense("small", &idefics2("small", weights), &batch(&config("small"), 1));
        let model = Idefics3::from_folder(&folder("tiny-idefics3"), &device, weights, |_| ()).unwrap();
        assert_packed_gradients_match_dense("tiny-idefics3", &model, &idefics3::batches(&model)[1]);
        let model = Idefics3::from_folder(&folder("tiny-smolvlm"), &device, weights, |_| ()).unwrap();
        assert_packed_gradients_match_dense("tiny-smolvlm", &model, &idefics3::batches(&model)[0]);
        let model = Idefics1::from_folder(&folder("idefics1-small"), &device, weights, |_| ()).unwrap();
        assert_packed_gradients_match_dense("idefics1-small", &model, &idefics1::batches(&model)[1]);
    }
}
