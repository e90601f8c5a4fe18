//! The pause between attempts.

use std::{thread, time::Duration};

/// 0.1 s, doubled each time.
pub(crate) fn back_off(attempt: u32) {
    thread::sleep(Duration::from_millis(100 << attempt.min(6)));
}
