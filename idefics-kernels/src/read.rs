//! Reading memory and doing as little as possible with it: what the other kernels are measured against.

#![allow(unsafe_code)] // vectors

use rayon::prelude::*;

use crate::Isa;
use crate::vector::{Vector, Work};

/// Values of one task: 1 MiB.
const TASK: usize = 1 << 18;

/// Places of a task that are read in turn, as a product reads several rows of a weight at a time.
const STREAMS: usize = 4;

/// Bytes that are asked for ahead of each stream.
const AHEAD: usize = 1024;

/// The sum of all values, in no order that means anything, on the best instruction set and all threads: how fast it is
/// over a slice that no cache holds is how fast the machine reads memory.
pub fn read(values: &[f32]) -> f32 {
    read_on(Isa::best(), values)
}

/// [`read`] on a given instruction set.
///
/// # Panics
/// If the machine does not have `isa`.
pub fn read_on(isa: Isa, values: &[f32]) -> f32 {
    values.par_chunks(TASK).map(|values| isa.run(Read(values), |Read(values)| values.iter().sum())).sum()
}

struct Read<'a>(&'a [f32]);

impl Work for Read<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        let stride = self.0.len() / STREAMS / 16 * 16;
        let start = self.0.as_ptr();
        // SAFETY: each stream is `stride` values of the slice, whole vectors on every instruction set.
        unsafe {
            let mut sums = [V::splat(0.0); STREAMS];
            for line in (0..stride).step_by(16) {
                for (stream, sum) in sums.iter_mut().enumerate() {
                    let line = start.add(stream * stride + line);
                    V::prefetch(line.cast::<u8>().wrapping_add(AHEAD));
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
