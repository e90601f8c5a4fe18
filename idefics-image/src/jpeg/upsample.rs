//! Upsamples a component to the size of the image.
//!
//! Components with a factor of 2 are interpolated with a triangle filter ("fancy upsampling"): 3/4 of the nearer sample
//! and 1/4 of the further sample in each direction. The result of both directions is rounded only once. Ties are
//! rounded alternately up and down. Other factors repeat samples.
//!
//! Source: `jdsample.c` of libjpeg-turbo 3.

use super::frame::{Component, Frame};

/// How a component is upsampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upsampling {
    /// The component already has the size of the image.
    None,
    /// Samples are interpolated horizontally.
    Across,
    /// Samples are interpolated vertically.
    Down,
    /// Samples are interpolated in both directions.
    Both,
    /// Each sample is repeated this many times horizontally and vertically.
    Repeat { across: usize, down: usize },
}

impl Upsampling {
    /// Chooses to repeat samples, without interpolation.
    pub(super) fn repeated(frame: &Frame, component: &Component) -> Self {
        match (frame.max_h / component.h, frame.max_v / component.v) {
            (1, 1) => Self::None,
            (across, down) => Self::Repeat { across, down },
        }
    }

    /// Makes the same choice as libjpeg-turbo. A component of one or two columns is not interpolated horizontally.
    pub(super) fn choose(frame: &Frame, component: &Component) -> Self {
        let (across, down) = (frame.max_h / component.h, frame.max_v / component.v);
        match (across, down) {
            (1, 1) => Self::None,
            (1, 2) => Self::Down,
            (2, 1) if component.width > 2 => Self::Across,
            (2, 2) if component.width > 2 => Self::Both,
            _ => Self::Repeat { across, down },
        }
    }
}

/// The buffers for computing rows of an upsampled component.
#[derive(Debug, Default)]
pub(super) struct Upsampler {
    /// Weighted sums of two rows, with one extra sum at each end.
    sums: Vec<u16>,
    /// The upsampled row.
    row: Vec<u8>,
}

impl Upsampler {
    /// Computes row `y` of the image, with `length` samples. Samples beyond the edge of the image have unspecified
    /// values. `source(y)` returns row `y` of the component, with at least `component.width` samples.
    pub(super) fn row<'a>(
        &'a mut self,
        upsampling: Upsampling,
        component: &Component,
        y: usize,
        length: usize,
        source: impl Fn(usize) -> &'a [u8],
    ) -> &'a [u8] {
        let width = component.width;
        // The two rows from which an output row is interpolated: first the nearer row, then the further row.
        let rows = |y: usize| {
            let further =
                if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(component.height - 1) };
            (&source(y / 2)[..width], &source(further)[..width])
        };
        self.row.resize(length, 0);
        match upsampling {
            Upsampling::None => return source(y),
            Upsampling::Down => {
                let (near, far) = rows(y);
                kernels::between(near, far, 1 + (y % 2) as u16, &mut self.row);
            }
            Upsampling::Across => {
                let row = &source(y)[..width];
                self.sum(width, |sums| kernels::copy(row, sums));
                kernels::spread::<2>(&self.sums, [1, 2], &mut self.row);
            }
            Upsampling::Both => {
                let (near, far) = rows(y);
                self.sum(width, |sums| kernels::add(near, far, sums));
                kernels::spread::<4>(&self.sums, [8, 7], &mut self.row);
            }
            Upsampling::Repeat { across, down } => {
                for (out, &sample) in self.row.chunks_mut(across).zip(&source(y / down)[..width]) {
                    out.fill(sample);
                }
            }
        }
        &self.row
    }

    /// Fills the sums by calling `fill`, and repeats the first and the last sum at the ends.
    fn sum(&mut self, width: usize, fill: impl FnOnce(&mut [u16])) {
        self.sums.resize(width + 2, 0);
        fill(&mut self.sums[1..=width]);
        self.sums[0] = self.sums[1];
        self.sums[width + 1] = self.sums[width];
    }
}

/// The inner loops, each compiled with and without AVX2.
mod kernels {
    /// Computes `(3 × near + far + bias) / 4` for each sample.
    #[inline(always)]
    fn between_plain(near: &[u8], far: &[u8], bias: u16, out: &mut [u8]) {
        for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
            *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
        }
    }

    #[inline(always)]
    fn copy_plain(row: &[u8], sums: &mut [u16]) {
        for (sum, &sample) in sums.iter_mut().zip(row) {
            *sum = u16::from(sample);
        }
    }

    #[inline(always)]
    fn add_plain(near: &[u8], far: &[u8], sums: &mut [u16]) {
        for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
    }

    /// Computes two samples from each sum except the outermost sums. The first sample has 3 parts of the sum and 1 part
    /// of the sum before it. The second sample has 3 parts of the sum and 1 part of the sum after it.
    #[inline(always)]
    fn spread_plain<const SHIFT: u32>(sums: &[u16], [before, behind]: [u16; 2], out: &mut [u8]) {
        let (pairs, _) = out.as_chunks_mut::<2>();
        for (((pair, &sum), &left), &right) in pairs.iter_mut().zip(&sums[1..]).zip(sums).zip(&sums[2..]) {
            let first = (3 * sum + left + before) >> SHIFT;
            let second = (3 * sum + right + behind) >> SHIFT;
            *pair = (first | second << 8).to_le_bytes();
        }
    }

    /// Defines a function that does the same as the plain function. If the CPU has AVX2, it calls a version that is
    /// compiled for AVX2.
    macro_rules! compiled_twice {
        ($name:ident, $plain:ident, ($($argument:ident: $kind:ty),*) $(, $shift:ident)?) => {
            #[allow(unsafe_code, reason = "calls a function that needs AVX2")]
            pub(super) fn $name$(<const $shift: u32>)?($($argument: $kind),*) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx2")]
                    fn compiled$(<const $shift: u32>)?($($argument: $kind),*) {
                        $plain$(::<$shift>)?($($argument),*);
                    }
                    if crate::isa::Isa::Avx2.is_allowed() && is_x86_feature_detected!("avx2") {
                        // SAFETY: the condition above checks that the CPU has AVX2.
                        return unsafe { compiled$(::<$shift>)?($($argument),*) };
                    }
                }
                $plain$(::<$shift>)?($($argument),*);
            }
        };
    }

    compiled_twice!(between, between_plain, (near: &[u8], far: &[u8], bias: u16, out: &mut [u8]));
    compiled_twice!(copy, copy_plain, (row: &[u8], sums: &mut [u16]));
    compiled_twice!(add, add_plain, (near: &[u8], far: &[u8], sums: &mut [u16]));
    compiled_twice!(spread, spread_plain, (sums: &[u16], biases: [u16; 2], out: &mut [u8]), SHIFT);

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn vectorized_loops_match_scalar() {
            for width in [3, 4, 16, 31, 100] {
                let row = |factor: usize| -> Vec<u8> { (0..width).map(|x| (x * x * factor) as u8).collect() };
                let (near, far) = (row(7), row(31));
                let (mut fast, mut plain) = (vec![0; width], vec![1; width]);
                between(&near, &far, 2, &mut fast);
                between_plain(&near, &far, 2, &mut plain);
                assert_eq!(fast, plain);

                let (mut sums, mut same) = (vec![0; width], vec![1; width]);
                add(&near, &far, &mut sums);
                add_plain(&near, &far, &mut same);
                assert_eq!(sums, same);

                let (mut fast, mut plain) = (vec![0; 2 * width - 4], vec![1; 2 * width - 4]);
                spread::<4>(&sums, [8, 7], &mut fast);
                spread_plain::<4>(&sums, [8, 7], &mut plain);
                assert_eq!(fast, plain);

                copy(&near, &mut sums);
                copy_plain(&near, &mut same);
                assert_eq!(sums, same);
            }
        }
    }
}
