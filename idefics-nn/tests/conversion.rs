//! Tests of the conversion between dtypes in files and in memory, over whole ranges of bit patterns.

use burn::tensor::{DType, Device, Tensor};
use half::{bf16, f16};
use idefics_checkpoint::{Checkpoint, CheckpointError};
use idefics_nn::{Embedding, LoadModule, LoadOptions};

use crate::folders::{file, folder_with};

/// Loads values that the file stores as `dtype` into a matrix of dtype `to`. The parameter must be a matrix, because
/// all other parameters become f32 on the CPU.
fn load(dtype: &str, bytes: &[u8], n: usize, to: DType) -> Result<Tensor<1>, CheckpointError> {
    let header = format!(r#"{{"weight":{{"dtype":"{dtype}","shape":[{n},1],"data_offsets":[0,{}]}}}}"#, bytes.len());
    let folder = folder_with(&[("model.safetensors", &file(&header, bytes))]);
    let table = Embedding::new(n, 1, &Device::flex());
    let options = LoadOptions { dtype: Some(to), ..LoadOptions::default() };
    Checkpoint::open(folder.path())?.load(table, &options, |_| ()).map(|table| table.table().flatten(0, 1))
}

/// Returns the bit patterns of all finite two-byte numbers. `exponent` is the mask of the exponent bits.
fn finite_patterns(exponent: u16) -> Vec<u16> {
    (0..=u16::MAX).filter(|bits| bits & exponent != exponent).collect()
}

fn bytes(bits: &[u16]) -> Vec<u8> {
    bits.iter().flat_map(|bits| bits.to_le_bytes()).collect()
}

/// Returns the bits of f32 elements.
fn bits_f32(tensor: Tensor<1>) -> Vec<u32> {
    tensor.into_data().try_into_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_bf16_widens_exactly() {
    let bits = finite_patterns(0x7F80);
    let widened = load("BF16", &bytes(&bits), bits.len(), DType::F32).unwrap();
    assert_eq!(bits_f32(widened), bits.iter().map(|&bits| u32::from(bits) << 16).collect::<Vec<u32>>());
    let kept =
        load("BF16", &bytes(&bits), bits.len(), DType::BF16).unwrap().into_data().try_into_vec::<bf16>().unwrap();
    assert_eq!(kept.into_iter().map(bf16::to_bits).collect::<Vec<u16>>(), bits);
}

#[test]
fn every_f16_widens_exactly() {
    let bits = finite_patterns(0x7C00);
    let widened = load("F16", &bytes(&bits), bits.len(), DType::F32).unwrap();
    let value = |bits: u16| {
        let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
        let size =
            if exponent == 0 { fraction * 2_f32.powi(-24) } else { (1024.0 + fraction) * 2_f32.powi(exponent - 25) };
        if sign == 1 { -size } else { size }
    };
    assert_eq!(bits_f32(widened), bits.iter().map(|&bits| value(bits).to_bits()).collect::<Vec<u32>>());
    let kept = load("F16", &bytes(&bits), bits.len(), DType::F16).unwrap().into_data().try_into_vec::<f16>().unwrap();
    assert_eq!(kept.into_iter().map(f16::to_bits).collect::<Vec<u16>>(), bits);
}

#[test]
fn f32_rounds_to_the_nearest_bf16_and_ties_to_even() {
    // The values are around every 64th bf16 number: just below, at and just above the midpoint to the next number.
    let patterns = finite_patterns(0x7F80).into_iter().filter(|bits| bits & 0x7FFF < 0x7F7F).step_by(64);
    let values: Vec<u32> = patterns
        .flat_map(|bits| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1_8000].map(|more| (u32::from(bits) << 16) + more))
        .collect();
    let bytes: Vec<u8> = values.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let rounded = load("F32", &bytes, values.len(), DType::BF16).unwrap().into_data().try_into_vec::<bf16>().unwrap();
    let expected = values.iter().map(|bits| ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16).collect::<Vec<u16>>();
    assert_eq!(rounded.into_iter().map(bf16::to_bits).collect::<Vec<u16>>(), expected);
}

#[test]
fn non_finite_values_are_counted_and_located() {
    let n = 200_000; // converted in several chunks
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0_f32; n];
        for index in [150_000, 70_001, 199_999] {
            values[index] = bad;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let error = load("F32", &bytes, n, DType::F32).unwrap_err();
        let CheckpointError::NonFinite { file, name, count, first, .. } = &error else { panic!("{error}") };
        assert_eq!((file.as_str(), name.as_str(), *count, *first), ("model.safetensors", "weight", 3, 70_001));
    }
}

#[test]
fn rejects_weight_too_large_for_f16() {
    let bytes = 70_000_f32.to_le_bytes();
    let error = load("F32", &bytes, 1, DType::F16).unwrap_err();
    assert!(matches!(&error, CheckpointError::NonFinite { .. }), "{error}");
    assert!(load("F32", &bytes, 1, DType::BF16).is_ok());
}
