//! The matrix product: every format, every instruction set and unaligned shapes, compared with f64.

use idefics_kernels::formats::{FourBit, FourBitType, Int8, Q4, Weight};
use idefics_kernels::{Isa, linear_int8_on, linear_on, linear_transposed_on};

use crate::common::{assert_close, every_format, isas, normal};

/// Computes `x Wᵀ + b` in f64, and for each output the sum of the magnitudes of its terms.
fn expected(x: &[f32], n_rows: usize, weight: &Weight<'_>, bias: Option<&[f32]>) -> (Vec<f64>, Vec<f64>) {
    let [d_out, d_in] = weight.dims();
    let values = weight.dequantize();
    let (mut sums, mut sizes) = (Vec::new(), Vec::new());
    for n in 0..n_rows {
        for feature in 0..d_out {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[feature]));
            let (mut sum, mut size) = (bias, bias.abs());
            for (x, weight) in x[n * d_in..(n + 1) * d_in].iter().zip(&values[feature * d_in..]) {
                sum += f64::from(*x) * f64::from(*weight);
                size += (f64::from(*x) * f64::from(*weight)).abs();
            }
            sums.push(sum);
            sizes.push(size + f64::from(f32::MIN_POSITIVE));
        }
    }
    (sums, sizes)
}

/// Tolerance of f32 rounding, relative to the sum of magnitudes.
const ROUNDING: f64 = 1e-6;

fn check(d_out: usize, d_in: usize, n_rows: usize) {
    let weights = normal(d_out * d_in, 1 + (d_out * 1000 + d_in) as u64, true);
    let x = normal(n_rows * d_in, 2, true);
    let bias = normal(d_out, 3, false);
    for weight in every_format(&weights, d_out, d_in) {
        for bias in [None, Some(&bias[..])] {
            let (sums, sizes) = expected(&x, n_rows, &weight, bias);
            for isa in isas() {
                let mut out = vec![f32::NAN; n_rows * d_out];
                linear_on(isa, &x, n_rows, &weight, bias, &mut out);
                let what = format!("{isa:?} {} [{d_out}, {d_in}] x {n_rows}", weight.name());
                assert_close(&what, &out, &sums, &sizes, ROUNDING);
            }
        }
    }
}

#[test]
fn product_matches_f64_for_unaligned_shapes() {
    for d_out in [1, 3, 4, 5, 16, 17, 33] {
        for d_in in [1, 31, 32, 33, 63, 64, 65, 100, 128, 192, 257] {
            for n_rows in [1, 2, 3, 8, 9] {
                check(d_out, d_in, n_rows);
            }
        }
    }
}

/// Compares `y W` with sums in f64.
fn check_transposed(d_out: usize, d_in: usize, n_rows: usize) {
    let weights = normal(d_out * d_in, 1 + (d_out * 1000 + d_in) as u64, true);
    let gradient = normal(n_rows * d_out, 2, true);
    for weight in every_format(&weights, d_out, d_in) {
        let values = weight.dequantize();
        let (mut sums, mut sizes) = (vec![0f64; n_rows * d_in], vec![f64::from(f32::MIN_POSITIVE); n_rows * d_in]);
        for (at, y) in gradient.iter().enumerate() {
            let (n, feature) = (at / d_out, at % d_out);
            for column in 0..d_in {
                let term = f64::from(*y) * f64::from(values[feature * d_in + column]);
                sums[n * d_in + column] += term;
                sizes[n * d_in + column] += term.abs();
            }
        }
        for isa in isas() {
            let mut out = vec![f32::NAN; n_rows * d_in];
            linear_transposed_on(isa, &gradient, n_rows, &weight, &mut out);
            let what = format!("{isa:?} {} [{d_out}, {d_in}] x {n_rows}, transposed", weight.name());
            assert_close(&what, &out, &sums, &sizes, ROUNDING);
        }
    }
}

#[test]
fn transposed_product_matches_f64_for_unaligned_shapes() {
    for (d_out, d_in) in [(1, 1), (3, 31), (16, 64), (17, 65), (33, 100), (48, 192), (300, 257), (515, 640)] {
        for n_rows in [1, 2, 9, 17] {
            check_transposed(d_out, d_in, n_rows);
        }
    }
    for (d_out, d_in) in [(0, 5), (5, 0), (0, 0)] {
        check_transposed(d_out, d_in, 3);
    }
    check_transposed(7, 5, 0);
}

#[test]
fn transposed_product_is_bitwise_equal_on_any_number_of_threads() {
    let (d_out, d_in, n_rows) = (523, 1088, 20);
    let weights = normal(d_out * d_in, 5, true);
    let gradient = normal(n_rows * d_out, 6, true);
    for weight in every_format(&weights, d_out, d_in) {
        let on = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let mut out = vec![0f32; n_rows * d_in];
            pool.install(|| linear_transposed_on(Isa::best(), &gradient, n_rows, &weight, &mut out));
            out
        };
        let one = on(1);
        assert_eq!(one, on(2), "{}", weight.name());
        assert_eq!(one, on(5), "{}", weight.name());
    }
}

#[test]
fn product_matches_f64_for_every_number_of_rows() {
    for n_rows in 0..=40 {
        check(37, 128, n_rows);
    }
}

#[test]
fn product_matches_f64_for_shapes_split_among_threads() {
    check(576, 1536, 1);
    check(1000, 1024, 5);
    check(515, 640, 30);
}

#[test]
fn product_handles_empty_dimensions() {
    for (d_out, d_in) in [(0, 5), (5, 0), (0, 0), (17, 0)] {
        for n_rows in [0, 1, 9] {
            check(d_out, d_in, n_rows);
        }
    }
}

#[test]
fn product_is_bitwise_equal_on_any_number_of_threads() {
    let (d_out, d_in) = (523, 1088);
    let weights = normal(d_out * d_in, 5, true);
    let x = normal(20 * d_in, 6, true);
    for weight in every_format(&weights, d_out, d_in) {
        for isa in isas() {
            for n_rows in [1, 3, 20] {
                let on = |n_threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                    let mut out = vec![0f32; n_rows * d_out];
                    pool.install(|| linear_on(isa, &x[..n_rows * d_in], n_rows, &weight, None, &mut out));
                    out
                };
                let one = on(1);
                assert_eq!(one, on(2), "{isa:?} {} {n_rows}", weight.name());
                assert_eq!(one, on(5), "{isa:?} {} {n_rows}", weight.name());
                assert_eq!(one, on(2), "{isa:?} {} {n_rows}, again", weight.name());
            }
        }
    }
}

#[test]
fn small_product_of_many_rows_is_bitwise_equal_on_any_number_of_threads() {
    let d_in = 1100; // gemm splits this many columns into several blocks
    for d_out in [16, 32, 48, 80, 97, 144, 192] {
        let weights = normal(d_out * d_in, 5, false);
        for n_rows in [9, 12, 16, 33, 64] {
            let x = normal(n_rows * d_in, 6, false);
            for weight in every_format(&weights, d_out, d_in) {
                let on = |n_threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                    let mut out = vec![0f32; n_rows * d_out];
                    pool.install(|| linear_on(Isa::best(), &x, n_rows, &weight, None, &mut out));
                    out
                };
                let one = on(1);
                for n_threads in [2, 3, 8] {
                    assert_eq!(one, on(n_threads), "{} [{d_out}] x {n_rows}, {n_threads} threads", weight.name());
                }
            }
        }
    }
}

#[test]
fn non_finite_activations_give_non_finite_outputs() {
    let (d_out, d_in) = (20, 96);
    let weights = normal(d_out * d_in, 7, false);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = normal(2 * d_in, 8, false);
        x[40] = value;
        for weight in every_format(&weights, d_out, d_in) {
            let row = weight.dequantize();
            for isa in isas() {
                let mut out = vec![0f32; 2 * d_out];
                linear_on(isa, &x, 2, &weight, None, &mut out);
                for feature in 0..d_out {
                    // A weight of exactly 0 may hide an infinity, but not NaN.
                    let is_hidden = row[feature * d_in + 40] == 0.0 && !value.is_nan();
                    assert!(is_hidden || !out[feature].is_finite(), "{isa:?} {} {feature}", weight.name());
                    assert!(out[d_out + feature].is_finite(), "{isa:?} {} {feature}: the other row", weight.name());
                }
            }
        }
    }
}

#[test]
fn q4_product_is_accurate_for_activations_of_any_magnitude() {
    let (d_out, d_in) = (19, 128);
    let weights = normal(d_out * d_in, 10, false);
    for exponent in [-90, -40, -10, 0, 10, 40, 90] {
        let scale = 2f32.powi(exponent);
        let x: Vec<f32> = normal(d_in, 11, false).iter().map(|x| x * scale).collect();
        let weight = Weight::from(Q4::quantize(&weights, d_out, d_in).unwrap());
        let (sums, sizes) = expected(&x, 1, &weight, None);
        for isa in isas() {
            let mut out = vec![0f32; d_out];
            linear_on(isa, &x, 1, &weight, None, &mut out);
            assert_close(&format!("{isa:?} 2^{exponent}"), &out, &sums, &sizes, ROUNDING);
        }
    }
}

#[test]
fn product_handles_negative_scales_from_double_quantization() {
    let nested =
        idefics_kernels::formats::NestedAbsmax { codes: vec![0, 255, 128], nested_absmax: vec![1.0], offset: 0.9925 };
    let absmax = nested.dequantize().unwrap();
    assert!(absmax[0] < 0.0);
    let codes: Vec<u8> = (0..96u8).map(|i| i.wrapping_mul(37)).collect();
    let weight = Weight::from(FourBit::from_nested(FourBitType::Nf4, codes, &nested, 3, 64).unwrap());
    let x = normal(64, 12, false);
    let (sums, sizes) = expected(&x, 1, &weight, None);
    for isa in isas() {
        let mut out = vec![0f32; 3];
        linear_on(isa, &x, 1, &weight, None, &mut out);
        assert_close(&format!("{isa:?}"), &out, &sums, &sizes, ROUNDING);
    }
}

#[test]
#[should_panic(expected = "activations must be [2, 4]")]
fn wrong_number_of_activations_panics() {
    let weight = every_format(&[0.0; 12], 3, 4).remove(0);
    linear_on(Isa::Plain, &[0.0; 7], 2, &weight, None, &mut [0.0; 6]);
}

#[test]
#[should_panic(expected = "activations must be")]
fn overflowing_number_of_rows_panics() {
    let weight = every_format(&[0.0; 12], 3, 4).remove(0);
    linear_on(Isa::best(), &[], 1 << 62, &weight, None, &mut []);
}

/// Rounds each row of activations to eight bits. Returns the rounded activations in f64.
fn rounded(x: &[f32], d_in: usize) -> Vec<f64> {
    let rows = x.chunks_exact(d_in.max(1)).flat_map(|row| {
        let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let reciprocal = 127.0 / largest;
        row.iter().map(move |value| f64::from((value * reciprocal).round_ties_even()) * f64::from(largest) / 127.0)
    });
    rows.collect()
}

#[test]
fn integer_product_matches_f64_and_is_bitwise_equal_on_every_instruction_set() {
    let small = [(1, 1, 1), (16, 32, 1), (17, 31, 2), (33, 64, 4), (5, 65, 5)];
    let large = [(40, 100, 33), (70, 1024, 64), (31, 257, 70), (110, 257, 70), (400, 64, 40)];
    for (d_out, d_in, n_rows) in small.into_iter().chain(large) {
        let weights = normal(d_out * d_in, 11, true);
        let x = normal(n_rows * d_in, 12, true);
        let bias = normal(d_out, 13, false);
        let codes = rounded(&x, d_in);
        for weight in every_format(&weights, d_out, d_in) {
            let values = weight.dequantize();
            let (mut sums, mut sizes) = (Vec::new(), Vec::new());
            for row in codes.chunks_exact(d_in) {
                for (weights, bias) in values.chunks_exact(d_in).zip(&bias) {
                    let terms = row.iter().zip(weights).map(|(x, weight)| x * f64::from(*weight));
                    sums.push(terms.clone().sum::<f64>() + f64::from(*bias));
                    sizes.push(terms.map(f64::abs).sum::<f64>() + f64::from(bias.abs()));
                }
            }
            let mut first: Option<Vec<f32>> = None;
            for isa in isas() {
                let mut out = vec![f32::NAN; n_rows * d_out];
                let done = linear_int8_on(isa, &x, n_rows, &weight, Some(&bias), &mut out);
                assert_eq!(done.is_some(), matches!(weight, Weight::Int8(_) | Weight::Q4(_)));
                if done.is_none() {
                    continue;
                }
                let what = format!("{isa:?} {} [{d_out}, {d_in}] x {n_rows}", weight.name());
                assert_close(&what, &out, &sums, &sizes, ROUNDING);
                let first = first.get_or_insert_with(|| out.clone());
                assert_eq!(first, &out, "{what}: must have the same bits as on the plain instruction set");
            }
        }
    }
}

#[test]
fn integer_product_of_non_finite_activations_gives_nan() {
    let weight: Weight<'_> = Int8::quantize(&normal(20 * 70, 14, false), 20, 70).unwrap().into();
    let q4: Weight<'_> = Q4::quantize(&normal(20 * 70, 14, false), 20, 70).unwrap().into();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = normal(2 * 70, 15, false);
        x[40] = value;
        for weight in [&weight, &q4] {
            for isa in isas() {
                let mut out = [0f32; 40];
                linear_int8_on(isa, &x, 2, weight, None, &mut out).unwrap();
                assert!(out[..20].iter().all(|out| out.is_nan()) && out[20..].iter().all(|out| out.is_finite()));
            }
        }
    }
    let mut out = [f32::NAN; 20];
    linear_int8_on(Isa::best(), &[0.0; 70], 1, &weight, None, &mut out).unwrap();
    assert_eq!(out, [0.0; 20]);
}
