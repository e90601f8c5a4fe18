//! Waits between attempts, with exponential back-off.

use std::{thread, time::Duration};

/// Sleeps for 0.1 s × 2^`attempt`, at most 6.4 s.
pub(crate) fn back_off(attempt: u32) {
    thread::sleep(Duration::from_millis(100 << attempt.min(6)));
}
