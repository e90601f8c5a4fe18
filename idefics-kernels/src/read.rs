//! Measures memory bandwidth by reading memory with as little work as possible. Other kernels are compared with this
//! rate.

#![allow(unsafe_code)] // SIMD

use rayon::prelude::*;

use crate::Isa;
use crate::vector::{Vector, Work};

/// Number of values per task. They take 1 MiB.
const TASK: usize = 1 << 18;

/// Number of streams that a task reads in turn. Products read several weight rows in the same way.
const STREAMS: usize = 4;

/// Prefetch distance of each stream, in bytes.
const PREFETCH_DISTANCE: usize = 1024;

/// Returns the sum of all values, computed on the best instruction set and all threads. The order of the additions is
/// unspecified.
///
/// For a slice larger than the caches, this function runs at the memory bandwidth of the machine.
pub fn stream_sum(values: &[f32]) -> f32 {
    stream_sum_on(Isa::best(), values)
}

/// [`stream_sum`] on a given instruction set.
///
/// # Panics
/// If the CPU does not support `isa`.
pub fn stream_sum_on(isa: Isa, values: &[f32]) -> f32 {
    values.par_chunks(TASK).map(|values| isa.run(Read(values), |Read(values)| values.iter().sum())).sum()
}

struct Read<'a>(&'a [f32]);

impl Work for Read<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        let stride = self.0.len() / STREAMS / 16 * 16;
        let start = self.0.as_ptr();
        // SAFETY: `STREAMS · stride` does not exceed the length of the slice, and `stride` is a multiple of 16, thus of
        // every vector width.
        unsafe {
            let mut sums = [V::splat(0.0); STREAMS];
            for line in (0..stride).step_by(16) {
                for (stream, sum) in sums.iter_mut().enumerate() {
                    let line = start.add(stream * stride + line);
                    V::prefetch(line.cast::<u8>().wrapping_add(PREFETCH_DISTANCE));
                    for at in (0..16).step_by(V::LANES) {
                        *sum = sum.add(V::load(line.add(at)));
                    }
                }
            }
            let rest: f32 = self.0[STREAMS * stride..].iter().sum();
            sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum() + rest
        }
    }
}
