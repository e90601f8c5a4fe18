//! Time of each operation that the CPU has a kernel for, while someone asks for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// What one kind of operation has taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
}

/// What a call has to do at least.
#[cfg(feature = "flex")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) operations: f64,
    pub(crate) bytes: f64,
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static OPERATIONS: Mutex<BTreeMap<&'static str, Operation>> = Mutex::new(BTreeMap::new());

/// Runs `work`, and returns what the operations in the whole process took meanwhile, the longest first. What is not
/// listed has no kernel.
pub fn profiled<R>(work: impl FnOnce() -> R) -> (R, Vec<Operation>) {
    let operations = || OPERATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    operations().clear();
    IS_ON.store(true, Ordering::Relaxed);
    let result = work();
    IS_ON.store(false, Ordering::Relaxed);
    let mut found: Vec<Operation> = std::mem::take(&mut *operations()).into_values().collect();
    found.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    (result, found)
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
    let Cost { operations, bytes } = cost;
    let mut all = OPERATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let none = Operation { name, calls: 0, seconds: 0.0, operations: 0.0, bytes: 0.0 };
    let entry = all.entry(name).or_insert(none);
    entry.calls += 1;
    entry.seconds += seconds;
    entry.operations += operations;
    entry.bytes += bytes;
    result
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_while_someone_asks() {
        let one = || timed("a test", Cost { operations: 2.0, bytes: 3.0 }, || 7);
        assert_eq!(one(), 7);
        let ((), found) = profiled(|| {
            one();
            one();
        });
        let found = found.iter().find(|operation| operation.name == "a test").unwrap();
        assert_eq!((found.calls, found.operations, found.bytes), (2, 4.0, 6.0));
        assert!(profiled(|| ()).1.iter().all(|operation| operation.name != "a test"));
    }
}
