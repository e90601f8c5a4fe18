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
    /// One layer of a chunk.
    ChunkLayer {
        /// Number of tokens of the chunk.
        tokens: u32,
    },
    /// One layer of a picture.
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

    /// Returns the expected time of one unit of `cost` in microseconds. `None` if nothing comparable has run.
    ///
    /// For a decode step, this is the time of the smallest step that has run with at least this number of rows. If
    /// there is none, it is the time of the largest step that has run. For a layer, it is the time of the next larger
    /// size that has run, scaled in proportion to the size. Times of smaller sizes are not used, because they may be
    /// mostly the time to read the weights.
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
