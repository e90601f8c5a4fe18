//! Runs work on a separate thread, so that the caller can stop waiting for it.

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

/// Interval at which the calling thread checks for cancellation.
const POLL: Duration = Duration::from_millis(50);
/// Capacity of the queue of progress reports.
const QUEUED: usize = 16;

/// Runs `work` on a new thread. On the calling thread, calls `progress` with each report of `work`.
///
/// # Errors
/// The error of `work`. [`HubError::Thread`] if the thread cannot be started. [`HubError::Cancelled`] within [`POLL`]
/// after `cancel` is set; `work` may then continue until it checks the flag itself.
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
                let _ = sender.send(report); // fails only after a cancellation, when the receiver is gone
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
    fn reports_arrive_in_order_before_the_result() {
        let mut seen = Vec::new();
        let result = run(&AtomicBool::default(), &mut |at| seen.push(at.done), |progress| {
            (0..100).for_each(|done| progress(report(done)));
            Ok(7)
        });
        assert_eq!((result.unwrap(), seen), (7, (0..100).collect::<Vec<_>>()));
    }

    #[test]
    fn cancellation_returns_while_work_is_stuck() {
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
