//! Tests of gradients through frozen weights in every format, and of adapters on them.

use std::num::NonZeroUsize;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_kernels::formats::FourBitType;
use idefics_nn::checkpoint::{fill_random, save};
use idefics_nn::{
    Adapter, Checkpoint, Linear, LoadModule, LoadOptions, PackedFormat, PackedWeight, ParameterMapper,
    ParameterVisitor, Quantization, Weight, map_parameters, visit_parameters,
};
use proptest::prelude::*;

use crate::EXACT;
use crate::common::{assert_close, assert_values_close, random, values};

/// The format of a weight.
#[derive(Debug, Clone, Copy)]
enum WeightFormat {
    Packed(PackedFormat),
    Dense(DType),
}

const ALL_FORMATS: [WeightFormat; 8] = [
    WeightFormat::Packed(PackedFormat::Int8),
    WeightFormat::Packed(PackedFormat::FourBit(FourBitType::Nf4)),
    WeightFormat::Packed(PackedFormat::FourBit(FourBitType::Fp4)),
    WeightFormat::Packed(PackedFormat::Q4),
    WeightFormat::Packed(PackedFormat::Int4 { group: NonZeroUsize::new(32).unwrap() }),
    WeightFormat::Dense(DType::BF16),
    WeightFormat::Dense(DType::F16),
    WeightFormat::Dense(DType::F32),
];

/// Creates a layer without a bias, with random frozen weights.
fn frozen(d_in: usize, d_out: usize, held: WeightFormat, seed: u64, device: &Device) -> Linear {
    let options = match held {
        WeightFormat::Dense(dtype) => LoadOptions { dtype: Some(dtype), ..LoadOptions::default() },
        WeightFormat::Packed(format) => {
            let quantization = Quantization { format, double_quant: false, modules_to_not_convert: Vec::new() };
            LoadOptions { quantize: Some(quantization), ..LoadOptions::default() }
        }
    };
    fill_random(Linear::new_without_bias(d_in, d_out, device), &options, seed, |_| ()).unwrap().no_grad()
}

/// Returns the dequantised weight of a layer, `[d_out, d_in]`.
fn numbers(linear: &Linear) -> Vec<f32> {
    values(match linear.weight() {
        Weight::Dense(weight) => weight.val().cast(DType::F32).inner(),
        Weight::Packed(weight) => weight.dequantize(),
    })
}

/// Returns the output, and the gradient of the sum of the squared outputs with respect to the input.
fn forward_and_back(linear: &Linear, input: &Tensor<2>) -> (Vec<f32>, Vec<f32>) {
    let input = Tensor::from_inner(input.clone()).require_grad();
    let output = linear.forward(input.clone());
    let gradients = output.clone().square().sum().backward();
    (values(output.inner()), values(input.grad(&gradients).unwrap()))
}

fn assert_gradient_matches(n_rows: usize, d_in: usize, d_out: usize, held: WeightFormat, seed: u64) {
    let linear = frozen(d_in, d_out, held, seed, &Device::flex().autodiff());
    let input = random::<2>(seed, [n_rows, d_in], &Device::flex());
    let (output, gradient) = forward_and_back(&linear, &input);
    let (weight, x) = (numbers(&linear), values(input));
    let mut expected = vec![0f64; n_rows * d_in];
    for n in 0..n_rows {
        for feature in 0..d_out {
            let row = &weight[feature * d_in..(feature + 1) * d_in];
            let y: f64 = row.iter().zip(&x[n * d_in..]).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            assert!((y - f64::from(output[n * d_out + feature])).abs() < f64::from(EXACT), "{held:?}");
            for (sum, w) in expected[n * d_in..(n + 1) * d_in].iter_mut().zip(row) {
                *sum += 2.0 * y * f64::from(*w);
            }
        }
    }
    let expected: Vec<f32> = expected.into_iter().map(|value| value as f32).collect();
    assert_values_close(&format!("{held:?} [{d_out}, {d_in}] x {n_rows}"), &gradient, &expected, EXACT);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gradient_matches_dequantised_weight(
        n_rows in 1_usize..20,
        d_in in 1_usize..150,
        d_out in 1_usize..60,
        seed: u64,
    ) {
        for held in ALL_FORMATS {
            assert_gradient_matches(n_rows, d_in, d_out, held, seed);
        }
    }
}

#[test]
fn result_does_not_depend_on_thread_count() {
    for held in ALL_FORMATS {
        let linear = frozen(300, 520, held, 7, &Device::flex().autodiff());
        let input = random::<2>(8, [33, 300], &Device::flex());
        let on = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| forward_and_back(&linear, &input))
        };
        let one = on(1);
        assert_eq!(one, on(2), "{held:?}");
        assert_eq!(one, on(3), "{held:?}");
    }
}

#[test]
fn half_precision_activations_keep_their_dtype() {
    for held in ALL_FORMATS {
        let device = Device::flex().autodiff();
        let linear = frozen(64, 8, held, 1, &device);
        let exact = random::<2>(2, [3, 64], &Device::flex());
        let half = Tensor::from_inner(exact.clone().cast(DType::BF16)).require_grad();
        let output = linear.forward(half.clone());
        assert_eq!(output.dtype(), DType::BF16);
        let gradient = half.grad(&output.square().sum().backward()).unwrap();
        assert_eq!(gradient.dtype(), DType::BF16);
        let (_, expected) = forward_and_back(&linear, &exact);
        assert_values_close("gradient", &values(gradient.cast(DType::F32)), &expected, 3e-2);
    }
}

#[test]
fn trained_dense_weight_gets_gradient() {
    let device = Device::flex().autodiff();
    let linear = fill_random(Linear::new(5, 3, &device), &LoadOptions::default(), 1, |_| ()).unwrap();
    let input = random::<2>(2, [4, 5], &Device::flex());
    let gradients = linear.forward(Tensor::from_inner(input.clone())).sum().backward();
    let Weight::Dense(weight) = linear.weight() else { unreachable!() };
    let expected = input.sum_dim(0).expand([3, 5]);
    assert_close("weight", &weight.val().grad(&gradients).unwrap(), &expected, EXACT);
}

/// Records the names that a visitor sees.
#[derive(Default)]
struct Shown {
    parameters: Vec<String>,
    packed: Vec<String>,
}

impl ParameterVisitor for Shown {
    fn visit<const D: usize>(&mut self, name: &str, _param: &Param<Tensor<D>>) {
        self.parameters.push(name.to_owned());
    }

    fn visit_packed(&mut self, name: &str, _weight: &PackedWeight) {
        self.packed.push(name.to_owned());
    }
}

#[test]
fn packed_weight_moves_with_module_and_is_not_a_parameter() {
    let device = Device::flex().autodiff();
    let nf4 = WeightFormat::Packed(PackedFormat::FourBit(FourBitType::Nf4));
    let linear = frozen(70, 9, nf4, 3, &device);
    let expected = numbers(&linear);
    let moved = [
        linear.clone(),
        linear.valid(),
        linear.valid().train(),
        linear.clone().fork(&Device::flex()),
        linear.clone().to_device(&device),
        linear.clone().materialize(),
    ];
    for linear in moved {
        let Weight::Packed(weight) = linear.weight() else { panic!("the weight must stay packed") };
        assert_eq!((weight.dims(), linear.num_params()), ([9, 70], 9 * 70));
        assert_eq!(numbers(&linear), expected);
        let mut shown = Shown::default();
        visit_parameters(&linear, &mut shown);
        assert_eq!((shown.parameters, shown.packed), (vec![], vec!["weight".to_owned()]));
    }
}

#[test]
fn packed_weight_is_saved_in_its_format() {
    for held in ALL_FORMATS {
        let WeightFormat::Packed(_) = held else { continue };
        let device = Device::flex();
        let linear = frozen(70, 9, held, 3, &device);
        let folder = tempfile::tempdir().unwrap();
        save(&linear, &folder.path().join("model.safetensors"), DType::F32, &[]).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let fresh = Linear::new_without_bias(70, 9, &device);
        let loaded = checkpoint.load(fresh, &LoadOptions::default(), |_| ()).unwrap();
        assert!(matches!(loaded.weight(), Weight::Packed(_)), "{held:?}");
        assert_eq!(numbers(&loaded), numbers(&linear), "{held:?}");
    }
}

#[test]
fn loading_replaces_packed_weight() {
    let device = Device::flex().autodiff();
    for (old, new) in [(0, 1), (1, 1), (1, 5), (4, 2)].map(|(old, new)| (ALL_FORMATS[old], ALL_FORMATS[new])) {
        let expected = frozen(70, 9, new, 3, &device);
        let folder = tempfile::tempdir().unwrap();
        save(&expected, &folder.path().join("model.safetensors"), None, &[]).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let as_stored = [String::new()];
        let options = LoadOptions { as_stored: &as_stored, ..LoadOptions::default() };
        let loaded = checkpoint.load(frozen(70, 9, old, 4, &device), &options, |_| ()).unwrap();
        match (loaded.weight(), expected.weight()) {
            (Weight::Packed(loaded), Weight::Packed(expected)) => assert_eq!(loaded.format(), expected.format()),
            (Weight::Dense(loaded), Weight::Dense(expected)) => {
                assert_eq!(loaded.val().dtype(), expected.val().dtype());
            }
            (loaded, _) => panic!("{old:?} replaced by {new:?} is {loaded:?}"),
        }
        assert_eq!(numbers(&loaded), numbers(&expected), "{old:?} replaced by {new:?}");
    }
    let packed = frozen(70, 9, ALL_FORMATS[3], 3, &device);
    let filled = fill_random(packed, &LoadOptions::default(), 5, |_| ()).unwrap();
    assert_eq!(numbers(&filled), numbers(&frozen(70, 9, WeightFormat::Dense(DType::F32), 5, &device)));
}

#[test]
fn mapper_that_changes_the_value_makes_packed_weight_dense() {
    struct Double;
    impl ModuleMapper for Double {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| value * 2.0)
        }
    }
    struct Nothing;
    impl ParameterMapper for Nothing {
        fn map<const D: usize>(&mut self, _name: &str, _param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            panic!("the layer has no other parameter");
        }
    }
    let linear = frozen(70, 9, ALL_FORMATS[1], 3, &Device::flex());
    let expected: Vec<f32> = numbers(&linear).into_iter().map(|value| 2.0 * value).collect();
    let kept = map_parameters(linear.clone(), &mut Nothing);
    assert!(matches!(kept.weight(), Weight::Packed(_)));
    let doubled = linear.map(&mut Double);
    assert!(matches!(doubled.weight(), Weight::Dense(_)));
    assert_eq!(numbers(&doubled), expected);
}

#[test]
fn adapter_adds_low_rank_product() {
    let (d_in, d_out, rank, scale) = (70, 9, 4, 0.5);
    for held in ALL_FORMATS {
        let plain = Device::flex();
        let a = random::<2>(1, [rank, d_in], &plain);
        let b = random::<2>(2, [d_out, rank], &plain);
        let input = random::<2>(3, [5, d_in], &plain);
        let side = input.clone().matmul(a.clone().transpose()).matmul(b.clone().transpose()) * scale;

        let linear = frozen(d_in, d_out, held, 4, &plain);
        let adapted = linear.clone().with_adapter(Some(Adapter::new(a.clone(), b.clone(), scale)));
        let expected = linear.forward(input.clone()) + side.clone();
        assert_close("kernels", &adapted.forward(input.clone()), &expected, EXACT);

        let linear = frozen(d_in, d_out, held, 4, &plain.clone().autodiff());
        let adapter = Adapter::new(Tensor::from_inner(a.clone()), Tensor::from_inner(b.clone()), scale);
        let adapted = linear.clone().with_adapter(Some(adapter.clone()));
        let output = adapted.forward(Tensor::from_inner(input.clone()));
        assert_close("graph", &output.clone().inner(), &expected, EXACT);
        let mut gradients = output.sum().backward();
        // d/dA of the sum of `scale · (x Aᵀ) Bᵀ` is `scale · (1 B)ᵀ (1 x)`, where 1 is a row of ones.
        let expected = b.clone().sum_dim(0).transpose().matmul(input.clone().sum_dim(0)) * scale; // [rank, d_in]
        assert_close("A", &adapter.lora_a.val().grad_remove(&mut gradients).unwrap(), &expected, EXACT);
        let expected = (input.clone().matmul(a.transpose()).sum_dim(0) * scale).expand([d_out, rank]);
        assert_close("B", &adapter.lora_b.val().grad_remove(&mut gradients).unwrap(), &expected, EXACT);
    }
}

#[test]
#[should_panic(expected = "the adapter must have the shape of the layer")]
fn rejects_adapter_of_wrong_shape() {
    let device = Device::flex();
    let adapter = Adapter::new(Tensor::zeros([2, 8], &device), Tensor::zeros([5, 2], &device), 1.0);
    drop(Linear::new(8, 4, &device).with_adapter(Some(adapter)));
}
