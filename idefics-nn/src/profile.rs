//! Optional timing of the operations that have a CPU kernel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Serialize, Serializer};

use idefics_kernels::ComputeUnit;

/// Totals of one kind of operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Operation {
    /// Name, for example `product of many rows` or `gelu`.
    pub name: &'static str,
    /// Number of calls.
    pub calls: usize,
    /// Total time of all calls, in seconds.
    pub seconds: f64,
    /// Number of additions and multiplications.
    pub operations: f64,
    /// Number of bytes of all inputs and outputs.
    pub bytes: f64,
    /// Execution unit that does the arithmetic; `None` if it is not known, or if there is almost no arithmetic.
    #[serde(serialize_with = "unit_name")]
    pub unit: Option<ComputeUnit>,
    /// Number of additions and multiplications that the unit executes. It is higher than `operations` if the unit needs
    /// several instructions of lower precision for one product.
    pub unit_operations: f64,
}

fn unit_name<S: Serializer>(unit: &Option<ComputeUnit>, serializer: S) -> Result<S::Ok, S::Error> {
    unit.map(ComputeUnit::name).serialize(serializer)
}

impl Operation {
    /// Adds the totals in `more`, which must belong to the same operation on the same unit.
    pub fn add(&mut self, more: &Self) {
        self.calls += more.calls;
        self.seconds += more.seconds;
        self.operations += more.operations;
        self.bytes += more.bytes;
        self.unit_operations += more.unit_operations;
    }
}

/// The minimal cost of a call: its arithmetic, and the bytes that it reads and writes.
#[cfg(feature = "flex")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) operations: f64,
    pub(crate) bytes: f64,
    /// Execution unit, and the number of operations that this unit executes for each operation counted in `operations`.
    pub(crate) arithmetic: Option<(ComputeUnit, f64)>,
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static OPERATIONS: Mutex<BTreeMap<Key, Operation>> = Mutex::new(BTreeMap::new());

/// Name of an operation and its execution unit.
type Key = (&'static str, Option<ComputeUnit>);

/// Measures the operations of the whole process while it exists. Only operations with a CPU kernel are measured.
#[derive(Debug)]
pub struct Profiler {
    clock: Instant,
}

impl Profiler {
    /// Starts measuring.
    pub fn start() -> Self {
        found().clear();
        IS_ON.store(true, Ordering::Relaxed);
        Self { clock: Instant::now() }
    }

    /// Returns the seconds since the start or the previous lap, and the operations in that time, the slowest first.
    pub fn lap(&mut self) -> (f64, Vec<Operation>) {
        let seconds = self.clock.elapsed().as_secs_f64();
        let mut sorted: Vec<Operation> = std::mem::take(&mut *found()).into_values().collect();
        sorted.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        self.clock = Instant::now();
        (seconds, sorted)
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        IS_ON.store(false, Ordering::Relaxed);
    }
}

fn found() -> MutexGuard<'static, BTreeMap<Key, Operation>> {
    OPERATIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one operation, and measures it if a profiler is active.
#[cfg(feature = "flex")]
pub(crate) fn timed<R>(name: &'static str, cost: Cost, work: impl FnOnce() -> R) -> R {
    if !IS_ON.load(Ordering::Relaxed) {
        return work();
    }
    let clock = Instant::now();
    let result = work();
    let seconds = clock.elapsed().as_secs_f64();
    let Cost { operations, bytes, arithmetic } = cost;
    let unit = arithmetic.map(|(unit, _)| unit);
    let mut all = found();
    let none = Operation { name, calls: 0, seconds: 0.0, operations: 0.0, bytes: 0.0, unit, unit_operations: 0.0 };
    let entry = all.entry((name, unit)).or_insert(none);
    entry.calls += 1;
    entry.seconds += seconds;
    entry.operations += operations;
    entry.bytes += bytes;
    entry.unit_operations += arithmetic.map_or(0.0, |(_, each)| operations * each);
    result
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn counts_calls_while_profiler_is_active() {
        let one = || {
            timed("a test", Cost { operations: 2.0, bytes: 3.0, arithmetic: Some((ComputeUnit::Vectors, 3.0)) }, || 7)
        };
        assert_eq!(one(), 7);
        let mut profiler = Profiler::start();
        one();
        one();
        let (_, found) = profiler.lap();
        let found = found.iter().find(|operation| operation.name == "a test").unwrap();
        assert_eq!((found.calls, found.operations, found.bytes), (2, 4.0, 6.0));
        assert_eq!((found.unit, found.unit_operations), (Some(ComputeUnit::Vectors), 12.0));
        let is_counted = |(_, found): (f64, Vec<Operation>)| found.iter().any(|operation| operation.name == "a test");
        assert!(!is_counted(profiler.lap()), "every lap starts from zero");
        drop(profiler);
        one();
        assert!(!is_counted(Profiler::start().lap()), "no profiler was active");
    }
}
