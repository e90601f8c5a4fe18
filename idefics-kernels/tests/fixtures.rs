//! The formats must match the output of bitsandbytes and quanto bit for bit.

use std::path::Path;

use half::bf16;
use idefics_kernels::formats::{FourBit, FourBitType, Int8, NestedAbsmax, check_nested_quant_map, dynamic_map};
use safetensors::SafeTensors;

/// Distance between neighbouring inputs of the table with 65 536 entries, in which the CPU code of bitsandbytes looks
/// up eight-bit codes.
const PLACE: f32 = 2.0 / 65535.0;

fn with_fixture(test: impl FnOnce(&SafeTensors<'_>)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantization.safetensors");
    let bytes = std::fs::read(path).unwrap();
    test(&SafeTensors::deserialize(&bytes).unwrap());
}

fn floats(fixture: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = fixture.tensor(name).unwrap().data();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn bytes(fixture: &SafeTensors<'_>, name: &str) -> Vec<u8> {
    fixture.tensor(name).unwrap().data().to_vec()
}

/// Asserts bitwise equality, except for the sign of zero.
fn assert_same(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let is_same = actual.to_bits() == expected.to_bits() || (*actual == 0.0 && *expected == 0.0);
        assert!(is_same, "{what}[{index}]: {actual:e} instead of {expected:e}");
    }
}

#[test]
fn four_bit_quantization_matches_bitsandbytes() {
    with_fixture(|fixture| {
        for case in
            ["nf4", "fp4", "nf4_spanning", "fp4_spanning", "nf4_odd", "fp4_odd", "nf4_zero_block", "nf4_bf16_storage"]
        {
            let kind = if case.starts_with("nf4") { FourBitType::Nf4 } else { FourBitType::Fp4 };
            let weight = fixture.tensor(&format!("{case}.weight")).unwrap();
            let (d_out, d_in) = (weight.shape()[0], weight.shape()[1]);
            let weights = floats(fixture, &format!("{case}.weight"));
            let codes = bytes(fixture, &format!("{case}.codes"));
            let absmax = floats(fixture, &format!("{case}.absmax"));

            let ours = FourBit::quantize(kind, &weights, d_out, d_in).unwrap();
            assert_eq!(ours.codes(), codes, "{case}");
            assert_same(case, ours.absmax(), &absmax);

            let theirs = FourBit::new(kind, codes, absmax, d_out, d_in).unwrap();
            let mut values = vec![0f32; weights.len()];
            theirs.dequantize_rows(0..d_out, &mut values);
            assert_same(case, &values, &floats(fixture, &format!("{case}.dequantized")));
            kind.check_quant_map(&floats(fixture, &format!("{case}.quant_map"))).unwrap();
        }
    });
}

#[test]
fn nested_scales_match_bitsandbytes() {
    with_fixture(|fixture| {
        let absmax = floats(fixture, "nf4_nested.absmax");
        let offset = floats(fixture, "nf4_nested.offset")[0];
        check_nested_quant_map(&floats(fixture, "nf4_nested.nested_quant_map")).unwrap();

        let theirs = NestedAbsmax {
            codes: bytes(fixture, "nf4_nested.absmax8"),
            nested_absmax: floats(fixture, "nf4_nested.nested_absmax"),
            offset,
        };
        assert_same("expanded", &theirs.dequantize().unwrap(), &floats(fixture, "nf4_nested.absmax_expanded"));

        // torch adds the scales in a different order.
        let mean = NestedAbsmax::quantize(&absmax).unwrap().offset;
        assert!((mean - offset).abs() <= 2.0 * f32::EPSILON * offset, "{mean} instead of {offset}");

        let ours = NestedAbsmax::quantize_around(offset, &absmax).unwrap();
        assert_same("nested absmax", &ours.nested_absmax, &theirs.nested_absmax);
        let map = dynamic_map();
        for (index, (our, their)) in ours.codes.iter().zip(&theirs.codes).enumerate() {
            let scaled = (absmax[index] - offset) / theirs.nested_absmax[index / 256];
            let distance = |code: u8| (map[usize::from(code)] - scaled).abs();
            // On the CPU, bitsandbytes first rounds to an entry of its look-up table. This crate takes the nearest
            // code, as bitsandbytes does on GPUs.
            let is_same = our == their || (distance(*their) - distance(*our)).abs() <= PLACE;
            assert!(is_same, "code {index}: {our} instead of {their} for {scaled}");
        }
    });
}

#[test]
fn dynamic_map_matches_bitsandbytes() {
    with_fixture(|fixture| assert_same("dynamic map", &dynamic_map(), &floats(fixture, "dynamic_map")));
}

#[test]
fn accepts_codes_stored_as_bf16() {
    with_fixture(|fixture| {
        let stored = fixture.tensor("nf4_bf16_storage.codes").unwrap();
        assert_eq!(stored.dtype(), safetensors::Dtype::BF16);
        let elements: Vec<bf16> =
            stored.data().chunks_exact(2).map(|bytes| bf16::from_le_bytes(bytes.try_into().unwrap())).collect();
        let codes: Vec<u8> = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
        let absmax = floats(fixture, "nf4_bf16_storage.absmax");
        let weight = FourBit::new(FourBitType::Nf4, codes, absmax, 8, 64).unwrap();
        let mut values = vec![0f32; 8 * 64];
        weight.dequantize_rows(0..8, &mut values);
        assert_same("values", &values, &floats(fixture, "nf4_bf16_storage.dequantized"));
    });
}

#[test]
fn int8_quantization_matches_quanto() {
    with_fixture(|fixture| {
        let weight = fixture.tensor("int8.weight").unwrap();
        let (d_out, d_in) = (weight.shape()[0], weight.shape()[1]);
        let ours = Int8::quantize(&floats(fixture, "int8.weight"), d_out, d_in).unwrap();
        let codes: Vec<i8> = bytes(fixture, "int8.codes").iter().map(|byte| byte.cast_signed()).collect();
        assert_eq!(ours.codes(), codes);
        assert_same("scales", ours.scales(), &floats(fixture, "int8.scales"));
        let mut values = vec![0f32; d_out * d_in];
        ours.dequantize_rows(0..d_out, &mut values);
        assert_same("values", &values, &floats(fixture, "int8.dequantized"));
    });
}

#[test]
fn llm_int8_matches_bitsandbytes_up_to_rounding() {
    with_fixture(|fixture| {
        let codes: Vec<i8> = bytes(fixture, "llm_int8.codes").iter().map(|byte| byte.cast_signed()).collect();
        let weight = Int8::from_llm_int8(codes, &floats(fixture, "llm_int8.scb"), 5, 32).unwrap();
        let mut values = vec![0f32; 5 * 32];
        weight.dequantize_rows(0..5, &mut values);
        for (ours, theirs) in values.iter().zip(floats(fixture, "llm_int8.dequantized")) {
            assert!((ours - theirs).abs() <= 2.0 * f32::EPSILON * theirs.abs(), "{ours} instead of {theirs}");
        }
    });
}
