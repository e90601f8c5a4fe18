use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use half::bf16;
use idefics_nn::{Activation, Embedding, LayerNorm, Linear, RmsNorm};
use proptest::prelude::*;

use crate::EXACT;
use crate::common::{assert_close, assert_values_close, numbers, part, random, values};

/// Collects a module's parameters, or their gradients, in the order of the module's fields.
struct Parameters<'a> {
    gradients: Option<&'a Gradients>,
    values: Vec<Vec<f32>>,
}

impl ModuleVisitor for Parameters<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = match self.gradients {
            None => param.val(),
            Some(gradients) => param.val().grad(gradients).unwrap(),
        };
        self.values.push(values(tensor));
    }
}

fn parameters<M: Module>(module: &M, gradients: Option<&Gradients>) -> Vec<Vec<f32>> {
    let mut visitor = Parameters { gradients, values: Vec::new() };
    module.visit(&mut visitor);
    visitor.values
}

/// Computes `left · right` in f64, for matrices `[rows, inner]` and `[inner, cols]`.
fn product(left: &[f32], right: &[f32], inner: usize, cols: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let at = |col| (0..inner).map(|i| f64::from(row[i]) * f64::from(right[i * cols + col])).sum::<f64>() as f32;
        (0..cols).map(at).collect::<Vec<f32>>()
    };
    left.chunks(inner).flat_map(row).collect()
}

fn transposed(matrix: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| matrix.iter().skip(col).step_by(cols).copied()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_matches_matrix_product(rows in 1_usize..20, d_in in 1_usize..40, d_out in 1_usize..40, seed: u64) {
        let device = Device::flex();
        let input = random(seed, [rows, 2, d_in], &device);

        let linear = Linear::new_without_bias(d_in, d_out, &device);
        let weight = transposed(&parameters(&linear, None)[0], d_in); // [d_in, d_out]
        let expected = product(&values(input.clone()), &weight, d_in, d_out);
        let output = linear.forward(input.clone());
        prop_assert_eq!(output.dims(), [rows, 2, d_out]);
        assert_values_close("without bias", &values(output), &expected, EXACT);

        let linear = Linear::new(d_in, d_out, &device);
        let params = parameters(&linear, None);
        let expected: Vec<f32> = product(&values(input.clone()), &transposed(&params[0], d_in), d_in, d_out)
            .iter()
            .zip(params[1].iter().cycle())
            .map(|(product, bias)| product + bias)
            .collect();
        assert_values_close("with bias", &values(linear.forward(input)), &expected, EXACT);
    }
}

#[test]
fn linear_takes_any_number_of_axes() {
    let device = Device::flex();
    let linear = Linear::new(6, 4, &device);
    let input = random(1, [2, 3, 5, 6], &device);
    let expected = values(linear.forward(input.clone()));
    assert_eq!(linear.dims(), [4, 6]);
    assert_values_close("two axes", &values(linear.forward(input.clone().reshape([30, 6]))), &expected, EXACT);
    let row = part(&input.reshape([30, 6]), 0, 7, 8).reshape([6]);
    assert_values_close("one axis", &values(linear.forward(row)), &expected[28..32], EXACT);
}

#[test]
fn linear_gradients_match_formula() {
    let device = Device::flex().autodiff();
    let linear = Linear::new(5, 3, &device);
    let weight = parameters(&linear, None).remove(0);
    let input = random(1, [2, 4, 5], &device).require_grad();
    let direction = random(2, [2, 4, 3], &device); // gradient of the output
    let gradients = (linear.forward(input.clone()) * direction.clone()).sum().backward();

    let direction = values(direction);
    let by_param = parameters(&linear, Some(&gradients));
    let by_weight = product(&transposed(&direction, 3), &values(input.clone()), 8, 5);
    assert_values_close("weight", &by_param[0], &by_weight, EXACT);
    let by_bias: Vec<f32> = (0..3).map(|col| direction.iter().skip(col).step_by(3).sum()).collect();
    assert_values_close("bias", &by_param[1], &by_bias, EXACT);
    let by_input = product(&direction, &weight, 3, 5);
    assert_values_close("input", &values(input.grad(&gradients).unwrap()), &by_input, EXACT);
}

#[test]
#[should_panic]
fn linear_rejects_other_dtype() {
    let device = Device::flex();
    Linear::new(4, 4, &device).forward(Tensor::<2>::zeros([1, 4], (&device, DType::BF16)));
}

/// Creates a parameter with the given values.
fn param(values: &[f32], device: &Device) -> Param<Tensor<1>> {
    Param::from_tensor(Tensor::from_floats(values, device))
}

#[test]
fn rms_norm_matches_formula() {
    let device = Device::flex();
    for (width, scale, eps) in [(1, 1.0, 1e-6), (7, 1e3, 1e-5), (40, 1e-4, 1e-6), (333, 1.0, 1e-2)] {
        let mut norm = RmsNorm::new(width, eps, &device);
        let weight = numbers(1, width);
        norm.weight = param(&weight, &device);
        let input = random(2, [2, 3, width], &device) * scale;
        let expected: Vec<f32> = values(input.clone())
            .chunks(width)
            .flat_map(|row| {
                let mean_square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                let root = (mean_square + eps).sqrt();
                row.iter().zip(&weight).map(move |(&x, &w)| (f64::from(x) / root * f64::from(w)) as f32)
            })
            .collect();
        assert_values_close("rms_norm", &values(norm.forward(input)), &expected, EXACT);
    }
}

#[test]
fn rms_norm_rounds_before_scaling() {
    let device = Device::flex();
    let mut norm = RmsNorm::new(64, 1e-6, &device);
    let weight: Vec<f32> = numbers(1, 64).into_iter().map(|x| bf16::from_f32(1.0 + x).to_f32()).collect();
    norm.weight = Param::from_tensor(Tensor::<1>::from_floats(weight.as_slice(), &device).cast(DType::BF16));
    // The input has multiples of 1/16, so the sum of their squares is exact in any order.
    let row: Vec<f32> = (0..64).map(|i| (i as f32 - 32.0) / 16.0).collect();
    let input = Tensor::<1>::from_floats(row.as_slice(), &device).reshape([1, 64]).cast(DType::BF16);
    let mean_square = row.iter().map(|x| x * x).sum::<f32>() / 64.0;
    let expected: Vec<f32> = row
        .iter()
        .zip(&weight)
        .map(|(x, w)| bf16::from_f32(bf16::from_f32(x / (mean_square + 1e-6).sqrt()).to_f32() * w).to_f32())
        .collect();
    let output = norm.forward(input);
    assert_eq!(output.dtype(), DType::BF16);
    assert_values_close("rms_norm", &values(output), &expected, 0.0);
}

#[test]
fn layer_norm_matches_formula() {
    let device = Device::flex();
    for (width, offset, eps) in [(1, 0.0, 1e-6), (7, 0.0, 1e-5), (72, 10.0, 1e-6), (333, -1.0, 1e-2)] {
        let mut norm = LayerNorm::new(width, eps, &device);
        let (weight, bias) = (numbers(1, width), numbers(2, width));
        (norm.weight, norm.bias) = (param(&weight, &device), param(&bias, &device));
        let input = random(3, [2, 3, width], &device) + offset;
        let expected: Vec<f32> = values(input.clone())
            .chunks(width)
            .flat_map(|row| {
                let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
                let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width as f64;
                let normed = move |x: f32| (f64::from(x) - mean) / (variance + eps).sqrt();
                row.iter()
                    .zip(weight.iter().zip(&bias))
                    .map(move |(&x, (&w, &b))| (normed(x) * f64::from(w) + f64::from(b)) as f32)
            })
            .collect();
        assert_values_close("layer_norm", &values(norm.forward(input)), &expected, EXACT);
    }
}

#[test]
fn activations_match_transformers() {
    // Expected values: ACT2FN[name](torch.tensor([-10, -3, -1, -0.5, 0, 0.5, 1, 3, 10], dtype=torch.float64)), with
    // Transformers 5.23.0.
    let input = [-10.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 10.0];
    let gelu_tanh = [0.0, -0.003_637_392, -0.158_808_01, -0.154_286, 0.0, 0.345_714, 0.841_192, 2.996_362_7, 10.0];
    let silu = [
        -0.000_453_978_7,
        -0.142_277_62,
        -0.268_941_4,
        -0.188_770_33,
        0.0,
        0.311_229_67,
        0.731_058_6,
        2.857_722_4,
        9.999_546,
    ];
    let device = Device::flex();
    for (name, expected) in [
        (
            "gelu",
            [0.0, -0.004_049_694, -0.158_655_25, -0.154_268_77, 0.0, 0.345_731_23, 0.841_344_8, 2.995_950_3, 10.0],
        ),
        ("gelu_pytorch_tanh", gelu_tanh),
        ("gelu_new", gelu_tanh),
        (
            "quick_gelu",
            [
                -4.057_961_3e-7,
                -0.018_071_31,
                -0.154_204_23,
                -0.149_611_56,
                0.0,
                0.350_388_44,
                0.845_795_8,
                2.981_928_7,
                10.0,
            ],
        ),
        ("relu", [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 3.0, 10.0]),
        ("silu", silu),
        ("swish", silu),
    ] {
        let activation: Activation = serde_json::from_value(name.into()).unwrap();
        let output = activation.forward(Tensor::<1>::from_floats(input, &device));
        assert_values_close(name, &values(output), &expected, EXACT);
    }
    assert!(serde_json::from_str::<Activation>(r#""mish""#).is_err());
}

#[test]
fn activations_of_large_values_are_finite() {
    let device = Device::flex();
    let input = Tensor::<1>::from_floats([-1e4, -100.0, 100.0, 1e4], &device);
    for activation in
        [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::Silu]
    {
        let output = values(activation.forward(input.clone()));
        assert_values_close(&format!("{activation:?}"), &output, &[0.0, 0.0, 100.0, 1e4], EXACT);
    }
}

#[test]
fn embedding_looks_up_rows() {
    let device = Device::flex();
    let embedding = Embedding::new(10, 3, &device);
    let ids = Tensor::<2, Int>::from_data(TensorData::from([[0, 9, 4], [4, 1, 0]]), &device);
    let table = embedding.table();
    let rows = [0, 9, 4, 4, 1, 0].map(|id| part(&table, 0, id, id + 1));
    assert_close("rows", &embedding.forward(ids), &Tensor::cat(rows.to_vec(), 0).reshape([2, 3, 3]), 0.0);
    assert_eq!(embedding.table().dtype(), DType::F32);
}
