//! Tests of `quant_state`: round trips, and errors that name the wrong field.

use idefics_checkpoint::{QuantDtype, QuantState, StoredWeightError};
use idefics_kernels::formats::FourBitType;

const NESTED: &str = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0625}"#;

#[test]
fn round_trips() {
    for nested_offset in [None, Some(0.1f32), Some(0.0)] {
        for (kind, dtype) in [
            (FourBitType::Nf4, QuantDtype::Float32),
            (FourBitType::Fp4, QuantDtype::Float16),
            (FourBitType::Nf4, QuantDtype::Bfloat16),
        ] {
            let state = QuantState { kind, dims: [3, 100], dtype, nested_offset };
            assert_eq!(QuantState::parse(&state.to_bytes()).unwrap(), state);
        }
    }
    let state = QuantState::parse(NESTED.as_bytes()).unwrap();
    assert_eq!(state.nested_offset, Some(0.0625));
    let compact = NESTED.replace(": ", ":").replace(", ", ",");
    assert_eq!(String::from_utf8(state.to_bytes()).unwrap(), compact);
}

#[test]
fn rejects_every_truncation() {
    for len in 0..NESTED.len() {
        let error = QuantState::parse(&NESTED.as_bytes()[..len]).unwrap_err();
        assert!(matches!(error, StoredWeightError::QuantState { bytes, .. } if bytes == len), "{len}: {error}");
    }
}

#[test]
fn errors_name_the_wrong_field() {
    for (from, to, message) in [
        ("nf4", "nf3", r#"quant_state: quant_type is "nf3"; expected nf4 or fp4"#),
        ("\"blocksize\": 64", "\"blocksize\": 128", "quant_state: blocksize is 128; expected 64"),
        ("[4, 64]", "[4, 64, 1]", "quant_state: shape is [4, 64, 1]; expected [d_out, d_in]"),
        ("bfloat16", "float8", r#"quant_state: dtype is "float8"; expected float32, float16 or bfloat16"#),
        ("256", "64", "quant_state: nested_blocksize is 64; expected 256"),
        ("\"float32\"", "\"float16\"", r#"quant_state: nested_dtype is "float16"; expected float32"#),
        ("0.0625", "1e39", "quant_state: nested_offset is 1e39; expected a finite number"),
    ] {
        let error = QuantState::parse(NESTED.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    for (from, to) in [
        ("[4, 64]", "[-4, 64]"),
        ("[4, 64]", "null"),
        ("\"blocksize\": 64, ", ""),
        (", \"nested_offset\": 0.0625", ""),
        ("64, \"dtype\"", "6.5, \"dtype\""),
        ("{", "\u{0}{"),
    ] {
        let error = QuantState::parse(NESTED.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(matches!(error, StoredWeightError::QuantState { .. }), "{to}: {error}");
    }
    assert!(QuantState::parse(b"\xff\xfe").is_err());
    assert!(QuantState::parse(b"[]").is_err());
}

/// The JSON was written by bitsandbytes for the weights of `xtask/reference/quantization_fixtures.py`.
#[test]
fn parses_output_of_bitsandbytes() {
    let json = |kind: &str, shape: &str| {
        format!(r#"{{"quant_type": "{kind}", "blocksize": 64, "dtype": "float32", "shape": {shape}}}"#)
    };
    for (kind, name, shape, dims) in [
        (FourBitType::Nf4, "nf4", "[6, 128]", [6, 128]),
        (FourBitType::Fp4, "fp4", "[7, 72]", [7, 72]),
        (FourBitType::Nf4, "nf4", "[5, 33]", [5, 33]),
    ] {
        let state = QuantState::parse(json(name, shape).as_bytes()).unwrap();
        assert_eq!(state, QuantState { kind, dims, dtype: QuantDtype::Float32, nested_offset: None });
    }
    let nested = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [300, 64], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.048559367656707764}"#;
    assert_eq!(QuantState::parse(nested.as_bytes()).unwrap().nested_offset, Some(0.048_559_368));
}
