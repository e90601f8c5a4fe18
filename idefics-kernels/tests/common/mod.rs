//! Test helpers: seeded random numbers and comparisons.

use std::num::NonZeroUsize;

use idefics_kernels::formats::{Dense, FourBit, FourBitType, Int4, Int8, Q4, Weight};
use idefics_kernels::{Isa, IsaLevel};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Returns the instruction sets of this machine. Panics if the CPU does not support the level in `IDEFICS_REQUIRE_ISA`.
pub(crate) fn isas() -> Vec<Isa> {
    if let Some(level) = IsaLevel::required().unwrap() {
        assert!(level.is_available(), "IDEFICS_REQUIRE_ISA is {level}, which this CPU does not support");
    }
    Isa::available()
}

/// Returns `n` approximately normal numbers with standard deviation 1. With `heavy`, one percent of them are ten times
/// larger.
pub(crate) fn normal(n: usize, seed: u64, heavy: bool) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n)
        .map(|_| {
            let sum: f32 = (0..12).map(|_| rng.random::<f32>()).sum();
            let scale = if heavy && rng.random::<f32>() < 0.01 { 10.0 } else { 1.0 };
            (sum - 6.0) * scale
        })
        .collect()
}

/// The same weights in every format.
pub(crate) fn every_format(weights: &[f32], d_out: usize, d_in: usize) -> Vec<Weight<'static>> {
    vec![
        Dense::new(weights.to_vec(), d_out, d_in).unwrap().into(),
        Weight::Bf16(Dense::quantize(weights, d_out, d_in).unwrap()),
        Weight::F16(Dense::quantize(weights, d_out, d_in).unwrap()),
        Int8::quantize(weights, d_out, d_in).unwrap().into(),
        FourBit::quantize(FourBitType::Nf4, weights, d_out, d_in).unwrap().into(),
        FourBit::quantize(FourBitType::Fp4, weights, d_out, d_in).unwrap().into(),
        Q4::quantize(weights, d_out, d_in).unwrap().into(),
        Int4::quantize(weights, size(32), [d_out, d_in]).unwrap().into(),
        Int4::quantize(weights, size(128), [d_out, d_in]).unwrap().into(),
        Int4::quantize(weights, NonZeroUsize::MAX, [d_out, d_in]).unwrap().into(),
    ]
}

/// Converts a group size, which must not be 0.
pub(crate) fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// Asserts `|actual − expected| ≤ tolerance · size` for each element.
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], sizes: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (index, ((actual, expected), size)) in actual.iter().zip(expected).zip(sizes).enumerate() {
        let difference = (f64::from(*actual) - expected).abs();
        assert!(
            difference <= tolerance * size,
            "{what}[{index}]: {actual} instead of {expected}, an error of {:.1e} times {size}",
            difference / size
        );
    }
}
