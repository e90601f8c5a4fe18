//! Work on a thread of its own, whose caller stops waiting when it is cancelled.

use std::{
    panic,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use crate::{HubError, HubProgress};

/// Interval at which the caller looks whether it is cancelled.
const POLL: Duration = Duration::from_millis(50);
/// Number of reports that may wait for the caller.
const QUEUED: usize = 16;

/// Runs `work` on a thread and calls `progress` on this one.
///
/// # Errors
/// That of `work`; [`HubError::Cancelled`] within [`POLL`] after `cancel`, while `work` may go on until it sees the flag
/// itself; [`HubError::Thread`].
pub(crate) fn run<T: Send + 'static>(
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(HubProgress),
    work: impl FnOnce(&mut dyn FnMut(HubProgress)) -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    let (sender, reports) = mpsc::sync_channel(QUEUED);
    let thread = thread::Builder::new()
        .name("hub download".to_owned())
        .spawn(move || {
            work(&mut |report| {
                let _ = sender.send(report); // nobody listens any more after a cancellation
            })
        })
        .map_err(|source| HubError::Thread { source })?;
    loop {
        match reports.recv_timeout(POLL) {
            Ok(report) => progress(report),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if cancel.load(Ordering::Relaxed) && !thread.is_finished() {
            return Err(HubError::Cancelled);
        }
    }
    thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn report(done: u64) -> HubProgress {
        let file = "a".to_owned();
        HubProgress { file, file_done: done, file_total: None, done, total: done, is_waiting: false }
    }

    #[test]
    fn all_reports_come_in_order_and_then_the_result() {
        let mut seen = Vec::new();
        let result = run(&AtomicBool::default(), &mut |at| seen.push(at.done), |progress| {
            (0..100).for_each(|done| progress(report(done)));
            Ok(7)
        });
        assert_eq!((result.unwrap(), seen), (7, (0..100).collect::<Vec<_>>()));
    }

    #[test]
    fn the_caller_goes_when_it_is_cancelled_though_the_work_is_stuck() {
        let (cancel, stuck) = (AtomicBool::default(), Arc::new(Mutex::new(())));
        let (held, reached) = (stuck.lock().unwrap(), Arc::new(AtomicBool::new(false)));
        let (in_thread, at_end) = (stuck.clone(), reached.clone());
        let mut progress = |_| cancel.store(true, Ordering::Relaxed);
        let result = run(&cancel, &mut progress, move |progress| {
            progress(report(1));
            drop(in_thread.lock().unwrap());
            at_end.store(true, Ordering::SeqCst);
            Ok(())
        });
        assert!(matches!(result, Err(HubError::Cancelled)), "{result:?}");
        assert!(!reached.load(Ordering::SeqCst));
        drop(held);
    }
}
