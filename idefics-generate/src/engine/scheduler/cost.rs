//! Measures the time of steps and layers, to estimate the time of the next ones.

use std::collections::BTreeMap;

/// Weight of the newest time in a moving average.
const NEWEST: f64 = 0.25;

/// A unit of work whose time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// A decode step.
    Step {
        /// Number of rows of the step.
        rows: u32,
    },
    /// A decode step in which a single row has several tokens.
    Verify {
        /// Number of tokens of the step.
        tokens: u32,
    },
    /// One layer of the decoder, run on a chunk.
    ChunkLayer {
        /// Number of tokens of the chunk.
        tokens: u32,
    },
    /// One layer of the vision tower, or the connector, run on a picture.
    VisionLayer {
        /// Number of patches of the picture.
        patches: u32,
    },
    /// A step of a solo job.
    SoloStep,
}

/// Moving averages of the time of each unit of work, in microseconds.
#[derive(Debug, Default)]
pub struct CostModel {
    steps: BTreeMap<u32, f64>,
    verified: BTreeMap<u32, f64>,
    chunk_layers: BTreeMap<u32, f64>,
    vision_layers: BTreeMap<u32, f64>,
    solo_steps: Option<f64>,
}

impl CostModel {
    /// Notes that `count` units of `cost` took `micros` together.
    pub fn note(&mut self, cost: Cost, count: u32, micros: u64) {
        let newest = micros as f64 / f64::from(count.max(1));
        let average = |old: f64| old + NEWEST * (newest - old);
        let (times, size) = match cost {
            Cost::Step { rows } => (&mut self.steps, rows),
            Cost::Verify { tokens } => (&mut self.verified, tokens),
            Cost::ChunkLayer { tokens } => (&mut self.chunk_layers, class(tokens)),
            Cost::VisionLayer { patches } => (&mut self.vision_layers, class(patches)),
            Cost::SoloStep => {
                self.solo_steps = Some(self.solo_steps.map_or(newest, average));
                return;
            }
        };
        times.entry(size).and_modify(|old| *old = average(*old)).or_insert(newest);
    }

    /// Returns the expected time of one unit of `cost` in microseconds. `None` if nothing comparable has run.
    ///
    /// For a decode step, this is the time of the smallest step that has run with at least this number of rows. If
    /// there is none, it is the time of the largest step that has run. For a layer, it is the time of the next larger
    /// size that has run, scaled in proportion to the size. Times of smaller sizes are not used, because they may be
    /// mostly the time to read the weights.
    ///
    /// For a step that verifies proposals, the time lies on the line through the next smaller and the next larger size
    /// that have run. Beyond the largest size, it lies on the line through the largest one and a decode step of one row,
    /// which counts as a size of one token.
    pub fn expect(&self, cost: Cost) -> Option<f64> {
        match cost {
            Cost::Step { rows } => {
                let (above, below) = (self.steps.range(rows..).next(), self.steps.range(..rows).next_back());
                above.or(below).map(|(_, time)| *time)
            }
            Cost::Verify { tokens } => {
                let one = (1, *self.steps.get(&1)?);
                let at = |(size, time): (&u32, &f64)| (*size, *time);
                let largest = self.verified.last_key_value().map(at)?;
                let below = self.verified.range(..=tokens).next_back().map_or(one, at);
                let (below, above) = match self.verified.range(tokens..).next() {
                    Some(above) => (below, at(above)),
                    None => (one, largest),
                };
                if above.0 == below.0 {
                    return Some(above.1);
                }
                let slope = (above.1 - below.1) / f64::from(above.0 - below.0);
                Some((below.1 + slope * f64::from(tokens - below.0)).max(below.1))
            }
            Cost::ChunkLayer { tokens } => larger(&self.chunk_layers, class(tokens)),
            Cost::VisionLayer { patches } => larger(&self.vision_layers, class(patches)),
            Cost::SoloStep => self.solo_steps,
        }
    }
}

/// Rounds a size down to its class. Sizes of the same class share an average. Each doubling of the size has only eight
/// classes.
fn class(size: u32) -> u32 {
    let bits = u32::BITS - size.leading_zeros();
    let dropped = bits.saturating_sub(4);
    (size >> dropped) << dropped
}

fn larger(times: &BTreeMap<u32, f64>, size: u32) -> Option<f64> {
    let (known, time) = times.range(size..).next()?;
    Some(time * f64::from(size.max(1)) / f64::from((*known).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_unknown_sizes_are_estimated_from_larger_sizes() {
        let mut costs = CostModel::default();
        assert_eq!(costs.expect(Cost::ChunkLayer { tokens: 256 }), None);
        costs.note(Cost::ChunkLayer { tokens: 256 }, 4, 40_000);
        assert_eq!(costs.expect(Cost::ChunkLayer { tokens: 256 }), Some(10_000.0));
        assert_eq!(costs.expect(Cost::ChunkLayer { tokens: 128 }), Some(5_000.0));
        assert_eq!(costs.expect(Cost::ChunkLayer { tokens: 512 }), None);
        costs.note(Cost::Step { rows: 1 }, 1, 400);
        assert_eq!(costs.expect(Cost::Step { rows: 8 }), Some(400.0));
        costs.note(Cost::Step { rows: 8 }, 1, 500);
        assert_eq!(costs.expect(Cost::Step { rows: 5 }), Some(500.0));
    }

    #[test]
    fn times_of_verified_tokens_are_interpolated() {
        let mut costs = CostModel::default();
        let time = |costs: &CostModel, tokens| costs.expect(Cost::Verify { tokens });
        assert_eq!(time(&costs, 4), None);
        costs.note(Cost::Step { rows: 1 }, 1, 400);
        assert_eq!(time(&costs, 4), None);
        costs.note(Cost::Verify { tokens: 3 }, 1, 600);
        assert_eq!([2, 3, 4, 8].map(|tokens| time(&costs, tokens)), [500.0, 600.0, 700.0, 1100.0].map(Some));
        costs.note(Cost::Verify { tokens: 8 }, 1, 1_600);
        assert_eq!([2, 3, 4, 8].map(|tokens| time(&costs, tokens)), [500.0, 600.0, 800.0, 1600.0].map(Some));
    }

    #[test]
    fn an_average_moves_by_a_quarter_of_the_difference() {
        let mut costs = CostModel::default();
        costs.note(Cost::SoloStep, 1, 100);
        costs.note(Cost::SoloStep, 1, 200);
        assert_eq!(costs.expect(Cost::SoloStep), Some(125.0));
    }

    #[test]
    fn there_are_few_classes_of_sizes() {
        let classes: std::collections::BTreeSet<u32> = (1..=65_536).map(class).collect();
        assert!(classes.len() <= 8 * 17, "there are {} classes", classes.len());
        assert!((1..=65_536).all(|size| class(size) <= size && f64::from(size) < 1.13 * f64::from(class(size))));
    }
}
