//! Measures the peak arithmetic rate of the CPU. Other kernels are compared with this rate.

#![allow(unsafe_code)] // SIMD and AMX tiles

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use crate::Isa;
use crate::vector::{Vector, Work};

/// An arithmetic unit of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ComputeUnit {
    /// f32 vector instructions.
    Vectors,
    /// bf16 tile instructions (AMX).
    Tiles,
    /// 8-bit integer vector instructions (AVX-512 VNNI).
    ByteVectors,
    /// 8-bit integer tile instructions (AMX).
    ByteTiles,
}

impl fmt::Display for ComputeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vectors => "f32 vectors",
            Self::Tiles => "bf16 tiles",
            Self::ByteVectors => "byte vectors",
            Self::ByteTiles => "byte tiles",
        })
    }
}

/// Number of independent accumulators, enough to hide the latency of the multiply-adds.
const SUMS: usize = 12;

/// Number of additions to each accumulator.
const STEPS: usize = 1 << 18;

/// Number of measurements, of which the fastest is the result.
const RUNS: usize = 8;

impl ComputeUnit {
    /// Name for tables and JSON: `vectors`, `tiles`, `byte-vectors` or `byte-tiles`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vectors => "vectors",
            Self::Tiles => "tiles",
            Self::ByteVectors => "byte-vectors",
            Self::ByteTiles => "byte-tiles",
        }
    }

    /// Peak rate in operations per second, on all threads, with operands in registers. A multiply-add counts as two.
    /// `None` if [`Isa::best`] does not include this unit.
    pub fn peak(self) -> Option<f64> {
        let isa = Isa::best();
        if !self.is_available_on(isa) {
            return None;
        }
        let run = |_| {
            let clock = Instant::now();
            let operations: Vec<f64> = rayon::broadcast(|_| self.spin(isa));
            operations.into_iter().sum::<f64>() / clock.elapsed().as_secs_f64()
        };
        Some((0..RUNS).map(run).fold(0.0, f64::max))
    }

    fn is_available_on(self, isa: Isa) -> bool {
        match self {
            Self::Vectors => true,
            Self::ByteVectors => matches!(isa, Isa::Avx512 | Isa::Amx),
            Self::Tiles | Self::ByteTiles => isa == Isa::Amx,
        }
    }

    /// Keeps the unit busy for at least half a millisecond. Returns the number of operations.
    fn spin(self, isa: Isa) -> f64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles | Self::ByteTiles => {
                let steps = STEPS / 16;
                let multiplied = match self {
                    Self::Tiles => crate::amx::Tiles::new().spin::<false>(steps),
                    _ => crate::amx::Tiles::new().spin::<true>(steps),
                };
                2.0 * multiplied as f64
            }
            // SAFETY: `peak` has checked that the CPU has this unit.
            #[cfg(target_arch = "x86_64")]
            Self::ByteVectors => 2.0 * unsafe { spin_bytes() } as f64,
            _ => 2.0 * isa.run(Spin, |Spin| plain()) as f64,
        }
    }
}

struct Spin;

impl Work for Spin {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> usize {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let factor = V::splat(black_box(0.5));
            let mut sums = [V::splat(black_box(1.0)); SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = factor.mul_add(*sum, factor);
                }
            }
            black_box(sums);
        }
        V::LANES * SUMS * STEPS
    }
}

/// Runs the multiply-adds of [`Spin`] without SIMD intrinsics. Returns their number.
fn plain() -> usize {
    let factor = black_box(0.5f32);
    let mut sums = [black_box(1.0f32); SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = *sum * factor + factor;
        }
    }
    black_box(sums);
    SUMS * STEPS
}

/// Multiplies bytes, four per 32-bit lane. Returns the number of products.
///
/// # Safety
/// The CPU supports AVX-512 with VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn spin_bytes() -> usize {
    use std::arch::x86_64::*;
    let codes = _mm512_set1_epi8(black_box(1));
    let mut sums = [_mm512_set1_epi32(black_box(0)); SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, codes, codes);
        }
    }
    black_box(sums);
    64 * SUMS * STEPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_measured_for_every_available_unit() {
        for unit in [ComputeUnit::Vectors, ComputeUnit::Tiles, ComputeUnit::ByteVectors, ComputeUnit::ByteTiles] {
            assert_eq!(unit.peak().is_some_and(|peak| peak > 1e6), unit.is_available_on(Isa::best()), "{unit:?}");
        }
        assert!(ComputeUnit::Vectors.peak().is_some());
    }
}
