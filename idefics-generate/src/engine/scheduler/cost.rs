//! Measures the time of steps and layers, to estimate the time of the next ones.

use std::collections::BTreeMap;

/// Weight of the newest time in a moving average.
const NEWEST: f64 = 0.25;

/// What is measured: a decode step, or one layer of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// A decode step.
    Step {
        /// Rows of the step.
        rows: u32,
    },
    /// One layer of a chunk.
    ChunkLayer {
        /// Tokens of the chunk.
        tokens: u32,
    },
    /// One layer of a picture.
    VisionLayer {
        /// Patches of the picture.
        patches: u32,
    },
    /// A step of a solo job.
    SoloStep,
}

/// Moving averages of times, in microseconds.
#[derive(Debug, Default)]
pub struct CostModel {
    steps: BTreeMap<u32, f64>,
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
            Cost::ChunkLayer { tokens } => (&mut self.chunk_layers, class(tokens)),
            Cost::VisionLayer { patches } => (&mut self.vision_layers, class(patches)),
            Cost::SoloStep => {
                self.solo_steps = Some(self.solo_steps.map_or(newest, average));
                return;
            }
        };
        times.entry(size).and_modify(|old| *old = average(*old)).or_insert(newest);
    }

    /// The expected time of one unit of `cost`. `None` if nothing comparable has run.
    ///
    /// A decode step takes the time of the next larger number of rows that has run, or else of the next smaller one.
    /// The time of a layer is in proportion to that of the next larger size. Smaller sizes are not used, because their
    /// time may be mostly that of reading the weights.
    pub fn expect(&self, cost: Cost) -> Option<f64> {
        match cost {
            Cost::Step { rows } => {
                let (above, below) = (self.steps.range(rows..).next(), self.steps.range(..rows).next_back());
                above.or(below).map(|(_, time)| *time)
            }
            Cost::ChunkLayer { tokens } => larger(&self.chunk_layers, class(tokens)),
            Cost::VisionLayer { patches } => larger(&self.vision_layers, class(patches)),
            Cost::SoloStep => self.solo_steps,
        }
    }
}

/// The class of a size. Sizes of a class share an average. There are eight classes for each doubling, so there are
/// never many.
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
    fn sizes_that_have_not_run_are_estimated_from_larger_ones() {
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
    fn an_average_moves_by_a_quarter_of_the_difference() {
        let mut costs = CostModel::default();
        costs.note(Cost::SoloStep, 1, 100);
        costs.note(Cost::SoloStep, 1, 200);
        assert_eq!(costs.expect(Cost::SoloStep), Some(125.0));
    }

    #[test]
    fn there_are_few_classes_of_sizes() {
        let classes: std::collections::BTreeSet<u32> = (1..=65_536).map(class).collect();
        assert!(classes.len() <= 8 * 17, "{} classes", classes.len());
        assert!((1..=65_536).all(|size| class(size) <= size && f64::from(size) < 1.13 * f64::from(class(size))));
    }
}
