//! Invalid parts of a weight are rejected, with errors that name the part.

use idefics_kernels::formats::{FormatError, FourBit, FourBitType, Int8, NestedAbsmax, Q4, check_nested_quant_map};

#[test]
fn rejects_parts_of_the_wrong_size() {
    let nf4 = |codes: usize, absmax: usize| FourBit::new(FourBitType::Nf4, vec![0; codes], vec![1.0; absmax], 3, 43);
    nf4(65, 3).unwrap(); // 129 weights
    assert_eq!(
        nf4(64, 3).unwrap_err().to_string(),
        "four-bit codes of a [3, 43] weight: expected 65 elements, found 64"
    );
    assert_eq!(nf4(65, 2).unwrap_err().to_string(), "absmax of a [3, 43] weight: expected 3 elements, found 2");
    assert!(matches!(Int8::new(vec![0; 6], vec![1.0; 3], 2, 3), Err(FormatError::Length { expected: 2, .. })));
    assert!(matches!(Int8::new(vec![0; 5], vec![1.0; 2], 2, 3), Err(FormatError::Length { expected: 6, .. })));
    assert!(matches!(Q4::quantize(&[0.0; 5], 2, 3), Err(FormatError::Length { .. })));
    assert!(matches!(Q4::new(vec![], vec![], 17, 33), Err(FormatError::Length { expected: 1024, .. })));
    let huge = FourBit::new(FourBitType::Nf4, vec![], vec![], usize::MAX, 2);
    assert!(matches!(huge, Err(FormatError::TooLarge { .. })));
    assert!(matches!(Q4::new(vec![], vec![], usize::MAX, 0), Err(FormatError::TooLarge { .. })));
}

#[test]
fn rejects_invalid_scales() {
    for scale in [f32::NAN, f32::INFINITY, -1.0] {
        let nf4 = FourBit::new(FourBitType::Nf4, vec![0; 64], vec![1.0, scale], 2, 64).unwrap_err();
        assert!(matches!(nf4, FormatError::Scale { part: "absmax", index: 1, .. }), "{nf4}");
        let int8 = Int8::new(vec![0; 6], vec![scale, 1.0], 2, 3).unwrap_err();
        assert!(matches!(int8, FormatError::Scale { index: 0, .. }), "{int8}");
        let nested = NestedAbsmax { codes: vec![255; 2], nested_absmax: vec![scale], offset: 0.5 };
        assert!(nested.dequantize().is_err());
        let offset = NestedAbsmax { codes: vec![255; 2], nested_absmax: vec![1.0], offset: scale };
        assert!(offset.dequantize().is_err());
    }
    // The expanded scale is about −0.99 + 0.5, too far below zero.
    let nested = NestedAbsmax { codes: vec![0; 2], nested_absmax: vec![1.0], offset: 0.5 };
    assert!(matches!(nested.dequantize(), Err(FormatError::Scale { index: 0, .. })));
    let counts = NestedAbsmax { codes: vec![0; 257], nested_absmax: vec![1.0], offset: 1.0 };
    assert!(matches!(counts.dequantize(), Err(FormatError::Length { expected: 2, found: 1, .. })));
    for scale in [half::bf16::INFINITY, half::bf16::from_f32(1e37)] {
        let q4 = Q4::new(vec![0; 256], vec![scale; 16], 16, 32).unwrap_err();
        assert!(matches!(q4, FormatError::Scale { part: "q4 scales", index: 0, .. }), "{q4}");
    }
    // A scale that overflows, and a scale of 0 with a non-zero code.
    for (scale, code) in [(3e36, 0), (0.0, 1)] {
        let int8 = Int8::new(vec![0, 0, 0, 0, code, 0], vec![1.0, scale], 2, 3).unwrap_err();
        assert!(matches!(int8, FormatError::Scale { part: "int8 scales", index: 1, .. }), "{int8}");
    }
    Int8::new(vec![0; 6], vec![1.0, 0.0], 2, 3).unwrap();
}

#[test]
fn accepts_rounding_differences_in_the_nested_table() {
    let mut map = idefics_kernels::formats::dynamic_map();
    map[200] += 5e-7;
    check_nested_quant_map(&map).unwrap();
    map[200] += 5e-6;
    assert!(matches!(check_nested_quant_map(&map), Err(FormatError::QuantMap { index: 200, .. })));
}

#[test]
fn rejects_wrong_tables_and_non_finite_weights() {
    let mut table = *FourBitType::Nf4.table();
    table[3] += 0.001;
    assert!(matches!(FourBitType::Nf4.check_quant_map(&table), Err(FormatError::QuantMap { index: 3, .. })));
    let short = FourBitType::Nf4.check_quant_map(&table[..2]);
    assert!(matches!(short, Err(FormatError::QuantMap { index: 2, found, .. }) if found.is_nan()));
    assert!(check_nested_quant_map(&[0.0; 256]).is_err());
    assert!(matches!(Q4::quantize(&[0.0, 1e30], 1, 2), Err(FormatError::NonFinite { index: 1, .. })));
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let weights = [0.0, value];
        assert!(matches!(Int8::quantize(&weights, 1, 2), Err(FormatError::NonFinite { index: 1, .. })));
        assert!(matches!(Q4::quantize(&weights, 1, 2), Err(FormatError::NonFinite { index: 1, .. })));
        let four_bit = FourBit::quantize(FourBitType::Fp4, &weights, 1, 2);
        assert!(matches!(four_bit, Err(FormatError::NonFinite { index: 1, .. })));
    }
}
