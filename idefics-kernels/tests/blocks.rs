//! GGUF blocks: quantisers compared with gguf-py, and products compared with f64.

use std::path::Path;

use half::f16;
use idefics_kernels::formats::{Blocks, FormatError, GgufType, PackedFormat, Weight};
use idefics_kernels::{Isa, MAX_GEMV_ROWS, linear_int8_on, linear_on, linear_transposed_on, rounds_activations};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::common::{assert_close, isas, normal};

/// Returns the types that store codes rather than numbers.
fn block_types() -> Vec<GgufType> {
    GgufType::ALL.into_iter().filter(|kind| kind.block_len() > 1).collect()
}

fn quantizable() -> Vec<GgufType> {
    block_types().into_iter().filter(|kind| kind.is_quantizable()).collect()
}

/// Returns the offsets of the f16 numbers of a block, and the range of the bytes with its codes.
fn layout(kind: GgufType) -> (&'static [usize], std::ops::Range<usize>) {
    match kind {
        GgufType::Q4_0 => (&[0], 2..18),
        GgufType::Q4_1 => (&[0, 2], 4..20),
        GgufType::Q5_0 => (&[0], 2..22),
        GgufType::Q5_1 => (&[0, 2], 4..24),
        GgufType::Q8_0 => (&[0], 2..34),
        GgufType::Q2_K => (&[80, 82], 16..80),
        GgufType::Q3_K => (&[108], 0..96),
        GgufType::Q4_K => (&[0, 2], 16..144),
        GgufType::Q5_K => (&[0, 2], 16..176),
        GgufType::Q6_K => (&[208], 0..192),
        other => unreachable!("{other:?} has no blocks"),
    }
}

/// Creates random blocks with finite scales, some of them extreme.
fn random_blocks(kind: GgufType, n: usize, seed: u64) -> Vec<u8> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut bytes: Vec<u8> = (0..n * kind.block_bytes()).map(|_| rng.random()).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        match rng.random_range(0..8) {
            0 => block.fill(0xff),
            1 => block.fill(0),
            2 => block.fill(0x80),
            _ => {}
        }
        for at in layout(kind).0 {
            let scale = match rng.random_range(0..12) {
                0 => 65504.0,
                1 => -6e-8, // subnormal
                2 => 0.0,
                _ => rng.random::<f32>() - 0.5,
            };
            block[*at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}

/// Returns the largest magnitude that each value could have with other codes and the same scales. Rounding errors are
/// relative to it, because minima are multiplied separately from the codes.
fn reach(kind: GgufType, bytes: &[u8], n_values: usize) -> Vec<f64> {
    let mut reach = vec![0f64; n_values];
    for code in [0x00, 0xff, 0x80] {
        let mut bytes = bytes.to_vec();
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            block[layout(kind).1].fill(code);
        }
        let mut values = vec![0f32; n_values];
        kind.dequantize(&bytes, &mut values);
        for (reach, value) in reach.iter_mut().zip(values) {
            *reach = reach.max(f64::from(value.abs()));
        }
    }
    reach
}

/// Compares products and transposed products of `n_rows` rows with sums in f64, on every instruction set.
fn check(kind: GgufType, d_out: usize, blocks_per_row: usize, n_rows: usize, seed: u64) {
    let d_in = blocks_per_row * kind.block_len();
    let bytes = random_blocks(kind, d_out * blocks_per_row, seed);
    let reach = reach(kind, &bytes, d_out * d_in);
    let weight = Weight::from(Blocks::new(kind, bytes, d_out, d_in).unwrap());
    let values = weight.dequantize();
    let bias = normal(d_out, seed + 1, false);
    let x = normal(n_rows * d_in, seed + 2, true);
    let (mut sums, mut sizes) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(d_in) {
        for (feature, bias) in bias.iter().enumerate() {
            let columns = feature * d_in..(feature + 1) * d_in;
            let terms = x.iter().zip(&values[columns.clone()]).map(|(x, value)| f64::from(*x) * f64::from(*value));
            sums.push(terms.sum::<f64>() + f64::from(*bias));
            let reaches = x.iter().zip(&reach[columns]).map(|(x, reach)| f64::from(x.abs()) * reach);
            sizes.push(reaches.sum::<f64>() + f64::from(bias.abs()));
        }
    }
    let gradient = normal(n_rows * d_out, seed + 3, true);
    let mut transposed = vec![0f64; n_rows * d_in];
    let mut transposed_sizes = vec![f64::from(f32::MIN_POSITIVE); n_rows * d_in];
    for (at, y) in gradient.iter().enumerate() {
        let (n, feature) = (at / d_out, at % d_out);
        for column in 0..d_in {
            let term = f64::from(*y) * f64::from(values[feature * d_in + column]);
            transposed[n * d_in + column] += term;
            transposed_sizes[n * d_in + column] += term.abs();
        }
    }
    for isa in isas() {
        let what = format!("{isa:?} {} [{d_out}, {d_in}] x {n_rows}, seed {seed}", kind.name());
        let mut out = vec![f32::NAN; n_rows * d_out];
        linear_on(isa, &x, n_rows, &weight, Some(&bias), &mut out);
        assert_close(&what, &out, &sums, &sizes, 2e-6);
        let mut out = vec![f32::NAN; n_rows * d_in];
        linear_transposed_on(isa, &gradient, n_rows, &weight, &mut out);
        assert_close(&format!("{what}, transposed"), &out, &transposed, &transposed_sizes, 2e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_match_f64(
        kind in prop::sample::select(block_types()),
        d_out in 1usize..24,
        blocks in 1usize..4,
        n_rows in prop::sample::select(vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 20]),
        seed in 0u64..1 << 40,
    ) {
        check(kind, d_out, blocks, n_rows, seed);
    }

    #[test]
    fn quantizing_again_changes_little(kind in prop::sample::select(quantizable()), seed: u64, exponent in -8i32..4) {
        let scale = 2f32.powi(exponent);
        let values: Vec<f32> = normal(512, seed, true).iter().map(|value| value * scale).collect();
        let once = Blocks::quantize(kind, &values, 2, 256).unwrap();
        let once = Weight::from(once).dequantize();
        let twice = Weight::from(Blocks::quantize(kind, &once, 2, 256).unwrap()).dequantize();
        prop_assert!(error(&once, &twice) <= error(&values, &once) * 0.75 + 1e-12, "{kind:?}");
    }
}

#[test]
fn products_split_among_threads_match_f64() {
    for kind in block_types() {
        check(kind, 700, 1536 / kind.block_len(), 1, 1);
        check(kind, 300, 1024 / kind.block_len(), 33, 2);
        check(kind, 75, 2304 / kind.block_len(), 14, 3); // several chunks of columns and panels of rows
    }
}

/// Returns the types whose products can round activations.
fn rounding_types() -> Vec<GgufType> {
    block_types().into_iter().filter(|kind| rounds_activations(PackedFormat::Blocks(*kind))).collect()
}

/// Rounds activations to eight bits in the groups that llama.cpp uses for a type.
fn rounded(kind: GgufType, x: &[f32]) -> Vec<f64> {
    let groups = x.chunks(kind.block_len()).flat_map(|x| {
        let extreme = x.iter().fold(0f32, |extreme, x| if x.abs() > extreme.abs() { *x } else { extreme });
        let (per_unit, scale) = match kind.block_len() {
            256 => (-127.0 / extreme, f64::from(1.0 / (-127.0 / extreme))),
            _ => (127.0 / extreme.abs(), f16::from_f32(extreme.abs() / 127.0).to_f64()),
        };
        x.iter().map(move |x| f64::from((x * per_unit).round_ties_even()) * scale).collect::<Vec<f64>>()
    });
    groups.collect()
}

#[test]
fn products_with_rounded_activations_match_f64() {
    assert_eq!(rounding_types().len(), 8);
    for kind in rounding_types() {
        for (d_out, d_in) in [(23, 3 * kind.block_len()), (700, 1536)] {
            for n_rows in [1, 2, 4, 7, 9, 20, 33] {
                let bytes = random_blocks(kind, d_out * d_in / kind.block_len(), 3);
                let reach = reach(kind, &bytes, d_out * d_in);
                let weight = Weight::from(Blocks::new(kind, bytes, d_out, d_in).unwrap());
                let values = weight.dequantize();
                let x = normal(n_rows * d_in, 4, true);
                let bias = normal(d_out, 5, false);
                let (mut sums, mut sizes) = (Vec::new(), Vec::new());
                for x in rounded(kind, &x).chunks_exact(d_in) {
                    for (feature, bias) in bias.iter().enumerate() {
                        let columns = feature * d_in..(feature + 1) * d_in;
                        let terms = x.iter().zip(&values[columns.clone()]).map(|(x, value)| x * f64::from(*value));
                        sums.push(terms.sum::<f64>() + f64::from(*bias));
                        let reaches = x.iter().zip(&reach[columns]).map(|(x, reach)| x.abs() * reach);
                        sizes.push(reaches.sum::<f64>() + f64::from(bias.abs()));
                    }
                }
                for isa in isas() {
                    let mut out = vec![f32::NAN; n_rows * d_out];
                    linear_int8_on(isa, &x, n_rows, &weight, Some(&bias), &mut out).expect("the type is supported");
                    let what = format!("{isa:?} {kind:?} [{d_out}, {d_in}] x {n_rows}");
                    assert_close(&what, &out, &sums, &sizes, 2e-6);
                }
            }
        }
    }
}

#[test]
fn rounded_product_is_bitwise_equal_for_any_split_of_rows_and_threads() {
    let (d_out, d_in, n_rows) = (523, 1024, 7);
    let x = normal(n_rows * d_in, 6, true);
    for kind in rounding_types() {
        let bytes = random_blocks(kind, d_out * d_in / kind.block_len(), 5);
        let weight = Weight::from(Blocks::new(kind, bytes, d_out, d_in).unwrap());
        for isa in isas() {
            let on = |n_threads: usize, rows_at_once: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let mut out = vec![0f32; n_rows * d_out];
                for (x, out) in x.chunks(rows_at_once * d_in).zip(out.chunks_mut(rows_at_once * d_out)) {
                    pool.install(|| linear_int8_on(isa, x, x.len() / d_in, &weight, None, out)).unwrap();
                }
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(on(1, 1), on(3, n_rows), "{isa:?} {kind:?}");
        }
    }
}

#[test]
fn rounded_product_of_many_rows_is_bitwise_equal_on_any_number_of_threads() {
    let (d_out, d_in, n_rows) = (523, 1024, 20);
    let x = normal(n_rows * d_in, 6, true);
    for kind in rounding_types() {
        let bytes = random_blocks(kind, d_out * d_in / kind.block_len(), 5);
        let weight = Weight::from(Blocks::new(kind, bytes, d_out, d_in).unwrap());
        for isa in isas() {
            let on = |n_threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let mut out = vec![0f32; n_rows * d_out];
                pool.install(|| linear_int8_on(isa, &x, n_rows, &weight, None, &mut out)).unwrap();
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(on(1), on(3), "{isa:?} {kind:?}");
        }
    }
}

#[test]
fn rounded_product_of_non_finite_activations_gives_nan() {
    for kind in rounding_types() {
        let weight = Weight::from(Blocks::quantize(kind, &normal(20 * 256, 7, false), 20, 256).unwrap());
        for (isa, n_rows) in isas().into_iter().flat_map(|isa| [(isa, 2), (isa, 12)]) {
            for value in [f32::NAN, f32::INFINITY] {
                let mut x = normal(n_rows * 256, 8, false);
                x[40] = value;
                let mut out = vec![0f32; n_rows * 20];
                linear_int8_on(isa, &x, n_rows, &weight, None, &mut out).unwrap();
                assert!(out[..20].iter().all(|out| out.is_nan()), "{isa:?} {kind:?} x {n_rows}");
                assert!(out[20..].iter().all(|out| out.is_finite()), "{isa:?} {kind:?} x {n_rows}");
            }
        }
    }
}

#[test]
fn product_is_bitwise_equal_on_any_number_of_threads() {
    let (d_out, d_in) = (523, 1024);
    let x = normal(20 * d_in, 6, true);
    for kind in block_types() {
        let bytes = random_blocks(kind, d_out * d_in / kind.block_len(), 5);
        let weight = Weight::from(Blocks::new(kind, bytes, d_out, d_in).unwrap());
        for isa in isas() {
            for n_rows in [1, 3, 6, 20] {
                let on = |n_threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                    let mut out = vec![0f32; n_rows * d_out];
                    pool.install(|| linear_on(isa, &x[..n_rows * d_in], n_rows, &weight, None, &mut out));
                    out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                assert_eq!(on(1), on(3), "{isa:?} {kind:?} {n_rows}");
            }
        }
    }
}

/// With up to [`MAX_GEMV_ROWS`] rows, a row has the bits that it has alone. On AVX2, this does not hold for the types with
/// loops of their own, which multiply integers only for a single row.
#[test]
fn few_rows_are_bitwise_equal_to_single_rows() {
    let isas: Vec<Isa> = isas().into_iter().filter(|isa| *isa != Isa::Avx2).collect();
    for kind in block_types() {
        for (d_out, d_in) in [(7, kind.block_len()), (45, 3 * kind.block_len()), (523, 1024)] {
            let bytes = random_blocks(kind, d_out * d_in / kind.block_len(), 12);
            let weight = Weight::from(Blocks::new(kind, bytes, d_out, d_in).unwrap());
            let (x, bias) = (normal(MAX_GEMV_ROWS * d_in, 13, true), normal(d_out, 14, false));
            for isa in &isas {
                let product = |x: &[f32]| {
                    let mut out = vec![f32::NAN; x.len() / d_in * d_out];
                    linear_on(*isa, x, x.len() / d_in, &weight, Some(&bias), &mut out);
                    out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                let alone: Vec<u32> = x.chunks(d_in).flat_map(product).collect();
                for n_rows in 2..=MAX_GEMV_ROWS {
                    let together = product(&x[..n_rows * d_in]);
                    assert_eq!(together, alone[..n_rows * d_out], "{isa:?} {kind:?} [{d_out}, {d_in}] x {n_rows}");
                }
            }
        }
    }
}

#[test]
fn non_finite_activations_and_scales_give_non_finite_outputs() {
    for kind in quantizable() {
        let blocks = Blocks::quantize(kind, &normal(20 * 256, 7, false), 20, 256).unwrap();
        let weight = Weight::from(blocks.clone());
        for isa in isas() {
            for n_rows in [2, 7] {
                let mut x = normal(n_rows * 256, 8, false);
                x[40] = f32::NAN;
                let mut out = vec![0f32; n_rows * 20];
                linear_on(isa, &x, n_rows, &weight, None, &mut out);
                assert!(out[..20].iter().all(|out| out.is_nan()), "{isa:?} {kind:?} x {n_rows}");
                assert!(out[20..].iter().all(|out| out.is_finite()), "{isa:?} {kind:?} x {n_rows}");
            }
            let (x, mut out) = (normal(256, 8, false), vec![0f32; 20]);
            let mut bytes = blocks.as_bytes().to_vec();
            let at = layout(kind).0[0];
            bytes[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
            let weight = Weight::from(Blocks::new(kind, bytes, 20, 256).unwrap());
            linear_on(isa, &x, 1, &weight, None, &mut out);
            assert!(out[0].is_nan() && out[1].is_finite(), "{isa:?} {kind:?}");
        }
    }
}

#[test]
fn activations_of_any_magnitude_are_multiplied_accurately() {
    for kind in quantizable() {
        let weight = Weight::from(Blocks::quantize(kind, &normal(5 * 256, 9, false), 5, 256).unwrap());
        let values = weight.dequantize();
        for exponent in [-90, -40, 0, 40, 90] {
            let x: Vec<f32> = normal(256, 10, false).iter().map(|x| x * 2f32.powi(exponent)).collect();
            let sum = |sum: fn(f64) -> f64| -> Vec<f64> {
                let terms = |row: &[f32]| x.iter().zip(row).map(|(x, w)| sum(f64::from(*x) * f64::from(*w))).sum();
                values.chunks_exact(256).map(terms).collect()
            };
            for isa in isas() {
                let mut out = vec![0f32; 5];
                linear_on(isa, &x, 1, &weight, None, &mut out);
                assert_close(&format!("{isa:?} {kind:?} 2^{exponent}"), &out, &sum(|x| x), &sum(f64::abs), 3e-6);
            }
        }
    }
}

#[test]
fn quantized_blocks_match_gguf_py() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf_quantized.safetensors");
    let file = std::fs::read(path).unwrap();
    let fixture = SafeTensors::deserialize(&file).unwrap();
    let values = fixture.tensor("values").unwrap();
    let values: Vec<f32> =
        values.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    use GgufType as T;
    for kind in [T::F16, T::BF16, T::Q4_0, T::Q4_1, T::Q5_0, T::Q5_1, T::Q8_0] {
        let expected = fixture.tensor(kind.name()).unwrap();
        let mut blocks = vec![0; expected.data().len()];
        kind.quantize(&values, &mut blocks);
        let row = expected.shape()[1];
        for (index, (blocks, expected)) in blocks.chunks(row).zip(expected.data().chunks(row)).enumerate() {
            assert_eq!(blocks, expected, "{kind:?}, block {index}");
        }
    }
}

/// Returns the root of the mean squared difference.
fn error(a: &[f32], b: &[f32]) -> f64 {
    (a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
}

/// Quantises groups of `n` values, and dequantises them. A group has `steps` equal steps, over the smallest range that
/// contains 0 and all values of the group. Minima and step sizes are rounded to six bits in each block of 256 values,
/// as in the types with sub-blocks.
fn naive(values: &[f32], n: usize, steps: f32) -> Vec<f32> {
    let quantized = values.chunks(256).flat_map(|block| {
        let range = |values: &[f32]| {
            let min = values.iter().fold(0f32, |min, value| min.min(*value));
            let max = values.iter().fold(0f32, |max, value| max.max(*value));
            (-min, (max - min) / steps)
        };
        let ranges: Vec<(f32, f32)> = block.chunks(n).map(range).collect();
        let largest =
            ranges.iter().fold((0f32, 0f32), |largest, range| (largest.0.max(range.0), largest.1.max(range.1)));
        let rounded = |value: f32, largest: f32| (63.0 * value / largest).round() * largest / 63.0;
        let decoded = move |(values, range): (&[f32], (f32, f32))| -> Vec<f32> {
            let (min, step) = (rounded(range.0, largest.0), rounded(range.1, largest.1));
            values.iter().map(|value| ((value + min) / step).round().clamp(0.0, steps) * step - min).collect()
        };
        block.chunks(n).zip(ranges).flat_map(decoded).collect::<Vec<f32>>()
    });
    quantized.collect()
}

/// Quantises groups of 16 values to codes from −32 to 31, and dequantises them. The value of largest magnitude gets
/// code −32. Step sizes are rounded to eight bits in each block of 256 values.
fn naive_symmetric(values: &[f32]) -> Vec<f32> {
    let quantized = values.chunks(256).flat_map(|block| {
        let extreme = |values: &[f32]| {
            values.iter().fold(0f32, |extreme, value| if value.abs() > extreme.abs() { *value } else { extreme })
        };
        let steps: Vec<f32> = block.chunks(16).map(|values| extreme(values) / -32.0).collect();
        let largest = extreme(&steps);
        let decoded = move |(values, step): (&[f32], f32)| -> Vec<f32> {
            let step = (step / largest * -128.0).round().clamp(-128.0, 127.0) * largest / -128.0;
            values.iter().map(|value| (value / step).round().clamp(-32.0, 31.0) * step).collect()
        };
        block.chunks(16).zip(steps).flat_map(decoded).collect::<Vec<f32>>()
    });
    quantized.collect()
}

#[test]
fn searched_scales_are_more_accurate_than_scales_from_extreme_values() {
    let values = normal(256 * 64, 11, true);
    let lost = |kind| error(&values, &Weight::from(Blocks::quantize(kind, &values, 64, 256).unwrap()).dequantize());
    assert!(lost(GgufType::Q4_K) < 0.95 * error(&values, &naive(&values, 32, 15.0)), "{}", lost(GgufType::Q4_K));
    assert!(lost(GgufType::Q5_K) < error(&values, &naive(&values, 32, 31.0)), "{}", lost(GgufType::Q5_K));
    assert!(lost(GgufType::Q6_K) < error(&values, &naive_symmetric(&values)), "{}", lost(GgufType::Q6_K));
    let in_order = [GgufType::Q4_0, GgufType::Q4_K, GgufType::Q5_K, GgufType::Q6_K, GgufType::Q8_0].map(lost);
    assert!(in_order.is_sorted_by(|a, b| a > b), "{in_order:?}");
}

#[test]
fn zeros_stay_zeros() {
    for kind in quantizable() {
        let blocks = Blocks::quantize(kind, &[0.0; 512], 2, 256).unwrap();
        assert!(Weight::from(blocks).dequantize().iter().all(|value| *value == 0.0), "{kind:?}");
    }
}

#[test]
fn rejects_wrong_sizes_and_invalid_values() {
    let error = |result: Result<Blocks<'_>, FormatError>| result.unwrap_err().to_string();
    assert_eq!(
        error(Blocks::new(GgufType::Q4_K, vec![], 1, 32)),
        "a row has 32 values; expected a multiple of 256, the block length of Q4_K"
    );
    assert!(error(Blocks::new(GgufType::Q8_0, vec![0; 35], 1, 32)).contains("expected 34 elements, found 35"));
    assert!(error(Blocks::quantize(GgufType::Q8_0, &[1e6; 32], 1, 32)).contains("weight 0 is 1000000"));
    assert!(error(Blocks::quantize(GgufType::Q8_0, &[f32::NAN; 32], 1, 32)).contains("weight 0 is NaN"));
    assert!(Blocks::new(GgufType::Q4_0, vec![], 0, 32).is_ok());
    let empty = Weight::from(Blocks::new(GgufType::Q4_0, vec![], 5, 0).unwrap());
    for n_rows in [0, 1, 9] {
        let mut out = vec![1f32; n_rows * 5];
        linear_on(Isa::best(), &[], n_rows, &empty, Some(&[2.0; 5]), &mut out);
        assert!(out.iter().all(|out| *out == 2.0));
    }
}
