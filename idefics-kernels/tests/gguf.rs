//! Dequantised GGUF blocks equal those of gguf-py bit for bit.

use std::path::Path;

use idefics_kernels::formats::GgufType;
use proptest::prelude::*;
use safetensors::SafeTensors;

#[test]
fn dequantized_blocks_match_gguf_py() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf.safetensors");
    let file = std::fs::read(path).unwrap();
    let fixture = SafeTensors::deserialize(&file).unwrap();
    for kind in GgufType::ALL {
        let name = kind.name();
        let blocks = fixture.tensor(&format!("{name}.blocks")).unwrap();
        let values = fixture.tensor(&format!("{name}.values")).unwrap();
        assert_eq!(blocks.shape()[1], kind.block_bytes(), "{name}");
        assert_eq!(values.shape()[1], kind.block_len(), "{name}");
        let expected: Vec<f32> =
            values.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        let mut out = vec![0.0; expected.len()];
        kind.dequantize(blocks.data(), &mut out);
        for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
            // The sign and payload of a NaN depend on the processor.
            let is_same = out.to_bits() == expected.to_bits() || (out.is_nan() && expected.is_nan());
            assert!(is_same, "{name}[{i}]: {out:e} instead of {expected:e}");
        }
    }
}

#[test]
fn type_ids_round_trip() {
    for kind in GgufType::ALL {
        assert_eq!(GgufType::from_id(kind.id()), Some(kind));
        assert_eq!(kind.row_bytes(512), Some(512 / kind.block_len() * kind.block_bytes()));
        assert_eq!(kind.row_bytes(513).is_some(), kind.block_len() == 1);
    }
    for other in [4, 5, 9, 15, 16, 23, 29, 34, 39, u32::MAX] {
        assert_eq!(GgufType::from_id(other), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_dequantized(kind in prop::sample::select(GgufType::ALL.to_vec()), bytes: [u8; 210]) {
        let mut out = vec![0.0; kind.block_len()];
        kind.dequantize(&bytes[..kind.block_bytes()], &mut out);
    }
}
