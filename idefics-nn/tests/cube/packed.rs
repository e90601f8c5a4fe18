//! Tests of linear layers in every format: few rows, many rows, and shapes whose rows end inside a word of codes.

use std::num::NonZeroUsize;

use burn::tensor::Device;
use idefics_kernels::formats::FourBitType;
use idefics_nn::checkpoint::fill_random;
use idefics_nn::{Linear, LoadOptions, PackedFormat, Quantization};
use proptest::prelude::*;

use crate::{difference, gpu, numbers};

fn format() -> impl Strategy<Value = PackedFormat> {
    let groups = [16, 32, 4096].map(|group| PackedFormat::Int4 { group: NonZeroUsize::new(group).unwrap() });
    prop::sample::select([&PackedFormat::ALL[..], &groups[..]].concat())
}

/// Creates a layer with random weights that are the same on every device.
fn linear([d_out, d_in]: [usize; 2], format: PackedFormat, seed: u64, device: &Device) -> Linear {
    let quantization = Quantization { format, double_quant: false, modules_to_not_convert: Vec::new() };
    let options = LoadOptions { quantize: Some(quantization), ..LoadOptions::default() };
    fill_random(Linear::new(d_in, d_out, device), &options, seed, |_| ()).unwrap()
}

fn check(n_rows: usize, dims: [usize; 2], format: PackedFormat, seed: u64) {
    let output = |device: &Device| linear(dims, format, seed, device).forward(numbers([n_rows, dims[1]], seed, device));
    let (ours, expected) = (output(&gpu()), output(&Device::flex()));
    let difference = difference(ours, expected);
    assert!(difference < 1e-5, "{format:?}, {n_rows} rows, {dims:?}: {difference}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn product_matches_cpu(
        n_rows in 1usize..40,
        d_out in 1usize..80,
        d_in in 1usize..300,
        format in format(),
        seed in any::<u64>(),
    ) {
        check(n_rows, [d_out, d_in], format, seed);
    }

    #[test]
    fn few_row_product_matches_cpu(
        n_rows in 1usize..17,
        d_out in 1usize..80,
        blocks in 1usize..20,
        format in format(),
        seed in any::<u64>(),
    ) {
        check(n_rows, [d_out, 32 * blocks], format, seed);
    }
}

#[test]
fn model_shapes_match_cpu() {
    for format in [PackedFormat::Int8, PackedFormat::FourBit(FourBitType::Nf4), PackedFormat::Q4] {
        for n_rows in [1, 3, 16, 17] {
            check(n_rows, [1024, 1152], format, 1);
        }
    }
}

#[test]
fn weight_larger_than_one_panel_matches_cpu() {
    check(17, [700, 65_536], PackedFormat::FourBit(FourBitType::Fp4), 2);
}
