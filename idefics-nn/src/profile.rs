//! Time of each operation that the CPU has a kernel for, while someone asks for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Serialize, Serializer};

use idefics_kernels::Unit;

/// What one kind of operation has taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Operation {
    /// `product of many rows`, `gelu`.
    pub name: &'static str,
    /// Calls.
    pub calls: usize,
    /// Seconds of all calls together.
    pub seconds: f64,
    /// Additions and multiplications, each counted once.
    pub operations: f64,
    /// Bytes of inputs and outputs, each counted once.
    pub bytes: f64,
    /// What multiplies and adds; `None` where it is not known, or there is next to no arithmetic.
    #[serde(serialize_with = "unit_name")]
    pub unit: Option<Unit>,
    /// Additions and multiplications of that unit: several for one where numbers are sums of shorter ones.
    pub unit_operations: f64,
}

fn unit_name<S: Serializer>(unit: &Option<Unit>, serializer: S) -> Result<S::Ok, S::Error> {
    unit.map(Unit::name).serialize(serializer)
}

impl Operation {
    /// Adds the calls of the same operation on the same unit.
    pub fn add(&mut self, more: &Self) {
        self.calls += more.calls;
        self.seconds += more.seconds;
        self.operations += more.operations;
        self.bytes += more.bytes;
        self.unit_operations += more.unit_operations;
    }
}

/// What a call has to do at least.
#[cfg(feature = "flex")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) operations: f64,
    pub(crate) bytes: f64,
    /// What multiplies and adds, and its operations for each of `operations`.
    pub(crate) arithmetic: Option<(Unit, f64)>,
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static OPERATIONS: Mutex<BTreeMap<Key, Operation>> = Mutex::new(BTreeMap::new());

/// An operation on one unit.
type Key = (&'static str, Option<Unit>);

/// Counts the operations of the whole process while it lives. What it does not list has no kernel.
#[derive(Debug)]
pub struct Profiler {
    clock: Instant,
}

impl Profiler {
    /// Counts from now on.
    pub fn start() -> Self {
        found().clear();
        IS_ON.store(true, Ordering::Relaxed);
        Self { clock: Instant::now() }
    }

    /// The seconds since the start or the last lap, and what operations took of them, the longest first.
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

/// Runs one operation, and counts it if someone asks.
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
    fn calls_are_counted_while_someone_asks() {
        let one =
            || timed("a test", Cost { operations: 2.0, bytes: 3.0, arithmetic: Some((Unit::Vectors, 3.0)) }, || 7);
        assert_eq!(one(), 7);
        let mut profiler = Profiler::start();
        one();
        one();
        let (_, found) = profiler.lap();
        let found = found.iter().find(|operation| operation.name == "a test").unwrap();
        assert_eq!((found.calls, found.operations, found.bytes), (2, 4.0, 6.0));
        assert_eq!((found.unit, found.unit_operations), (Some(Unit::Vectors), 12.0));
        let is_counted = |(_, found): (f64, Vec<Operation>)| found.iter().any(|operation| operation.name == "a test");
        assert!(!is_counted(profiler.lap()), "laps begin anew");
        drop(profiler);
        one();
        assert!(!is_counted(Profiler::start().lap()), "nobody asked");
    }
}
