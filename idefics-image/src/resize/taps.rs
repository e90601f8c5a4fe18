//! Fixed-point weights of one axis.

use std::ops::Range;

/// Fractional bits of a fixed-point weight; 255 × the sum of all weights fits in 32 bits.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// One half of the last integer bit: the initial value of sums, so that they are rounded.
pub(super) const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// The inputs of each output position along one axis, and their fixed-point weights.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// First input of each output.
    starts: Vec<usize>,
    /// End of the weights of each output in `weights`. They begin where those of the previous output end.
    ends: Vec<usize>,
    weights: Vec<i32>,
}

impl Taps {
    /// Adds the next output, which reads the inputs from `start` on. Starts must not decrease.
    pub(super) fn push(&mut self, start: usize, weights: impl Iterator<Item = i32>) {
        self.starts.push(start);
        self.weights.extend(weights);
        self.ends.push(self.weights.len());
    }

    /// Number of outputs.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The first input of `output`, and its weights.
    pub(super) fn of(&self, output: usize) -> (usize, &[i32]) {
        let begin = if output == 0 { 0 } else { self.ends[output - 1] };
        (self.starts[output], &self.weights[begin..self.ends[output]])
    }

    /// The range of inputs that `output` reads.
    pub(super) fn inputs(&self, output: usize) -> Range<usize> {
        let (start, weights) = self.of(output);
        start..start + weights.len()
    }

    /// The weights for the mirrored axis of `in_size` inputs.
    pub(super) fn mirrored(&self, in_size: usize) -> Self {
        let mut mirrored = Self::default();
        for output in (0..self.len()).rev() {
            let (_, weights) = self.of(output);
            mirrored.push(in_size - self.inputs(output).end, weights.iter().rev().copied());
        }
        mirrored
    }

    /// The inputs that a range of outputs reads, and the weights of these outputs, relative to the first of the inputs.
    pub(super) fn slice(&self, outputs: Range<usize>) -> (Range<usize>, Self) {
        let start = outputs.clone().map(|output| self.starts[output]).min().unwrap_or(0);
        let end = outputs.clone().map(|output| self.inputs(output).end).max().unwrap_or(0);
        let mut slice = Self::default();
        for output in outputs {
            let (first, weights) = self.of(output);
            slice.push(first - start, weights.iter().copied());
        }
        (start..end, slice)
    }

    /// The first input of each output.
    pub(super) fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// The largest number of inputs of an output.
    pub(super) fn window(&self) -> usize {
        (0..self.len()).map(|output| self.of(output).1.len()).max().unwrap_or(0)
    }

    /// The weights of `output` in groups of `N`, the first of which begins at a multiple of `align` inputs: the index of
    /// that input, and the groups, with zeros for inputs that are not read.
    pub(super) fn groups<const N: usize>(
        &self,
        output: usize,
        align: usize,
    ) -> (usize, impl Iterator<Item = [i32; N]> + '_) {
        let (start, weights) = self.of(output);
        let before = start % align;
        let count = (before + weights.len()).div_ceil(N);
        let weight = move |at: usize| at.checked_sub(before).and_then(|at| weights.get(at)).copied().unwrap_or(0);
        (start - before, (0..count).map(move |group| std::array::from_fn(|at| weight(N * group + at))))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{PRECISION_BITS, Taps};

    /// Reproducible pseudo-random values over the whole range.
    pub(crate) fn values(length: usize) -> Vec<u8> {
        (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
    }

    /// Outputs with `count` weights each, from the given inputs on. Weights have both signs and sum to about one.
    pub(crate) fn ramp_taps(starts: impl Iterator<Item = usize>, count: i32) -> Taps {
        let one = 1 << PRECISION_BITS;
        let mut taps = Taps::default();
        for start in starts {
            let weight = |index: i32| one / count + (index - count / 2) * (one / 40 / count);
            taps.push(start, (0..count).map(weight));
        }
        taps
    }

    /// One output that reads the inputs from the first on with these weights.
    pub(crate) fn one_output(weights: &[i32]) -> Taps {
        let mut taps = Taps::default();
        taps.push(0, weights.iter().copied());
        taps
    }
}
