//! Fixed-point weights of one axis.

use std::ops::Range;

/// Number of fractional bits of a fixed-point weight. With this number, 255 × the sum of all weights fits into 32 bits.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The fixed-point value of 1/2. Sums start at this value, so that they are rounded when their fraction is dropped.
pub(super) const ROUND: i32 = 1 << (PRECISION_BITS - 1);

/// The inputs of each output position along one axis, and their fixed-point weights.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// First input of each output.
    starts: Vec<usize>,
    /// Index in `weights` at which the weights of each output end. They begin where the weights of the previous output
    /// end.
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

    /// Returns the number of outputs.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Returns the first input of `output`, and the weights of its inputs.
    pub(super) fn of(&self, output: usize) -> (usize, &[i32]) {
        let begin = if output == 0 { 0 } else { self.ends[output - 1] };
        (self.starts[output], &self.weights[begin..self.ends[output]])
    }

    /// Returns the range of inputs that `output` reads.
    pub(super) fn inputs(&self, output: usize) -> Range<usize> {
        let (start, weights) = self.of(output);
        start..start + weights.len()
    }

    /// Returns the weights for the mirrored axis. The axis has `in_size` inputs.
    pub(super) fn mirrored(&self, in_size: usize) -> Self {
        let mut mirrored = Self::default();
        for output in (0..self.len()).rev() {
            let (_, weights) = self.of(output);
            mirrored.push(in_size - self.inputs(output).end, weights.iter().rev().copied());
        }
        mirrored
    }

    /// Returns the range of inputs that a range of outputs reads, and the weights of these outputs. In the returned
    /// weights, inputs are counted from the start of the returned range.
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

    /// Returns the first input of each output.
    pub(super) fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Returns the largest number of inputs that an output reads.
    pub(super) fn window(&self) -> usize {
        (0..self.len()).map(|output| self.of(output).1.len()).max().unwrap_or(0)
    }

    /// Returns the index of the first input of the first group, and the weights of `output` in groups of `N`. The index
    /// is a multiple of `align`. Inputs in a group that the output does not read have the weight 0.
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

    /// Returns taps with one output for each value in `starts`. The output reads `count` inputs, beginning with the
    /// input at this value. The weights have both signs and sum to about 1.
    pub(crate) fn ramp_taps(starts: impl Iterator<Item = usize>, count: i32) -> Taps {
        let one = 1 << PRECISION_BITS;
        let mut taps = Taps::default();
        for start in starts {
            let weight = |index: i32| one / count + (index - count / 2) * (one / 40 / count);
            taps.push(start, (0..count).map(weight));
        }
        taps
    }

    /// Returns taps with a single output, which reads the inputs from index 0 on with the given weights.
    pub(crate) fn one_output(weights: &[i32]) -> Taps {
        let mut taps = Taps::default();
        taps.push(0, weights.iter().copied());
        taps
    }
}
