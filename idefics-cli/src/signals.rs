//! Handles SIGINT, SIGTERM and SIGHUP.
//!
//! The first signal cancels the computation. The command then has the time [`GRACE`] to save its work and return. After
//! that time, or at the next signal, the program exits immediately. Some operations cannot be cancelled: a blocking
//! read, a slow server, loading weights. Data that must not be lost is therefore written as soon as it exists, not at
//! the end: the journal of a batch, the history of a chat.
//!
//! Exit codes are 128 plus the number of the signal: 130, 143 and 129.
//!
//! SIGXFSZ is caught and ignored. A write beyond the limit on file sizes (`ulimit -f`) then fails and is reported like
//! any other error.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use idefics_generate::CancelToken;

use crate::{scratch, terminal};

/// Maximum time for a command to return after a signal.
const GRACE: Duration = Duration::from_millis(700);

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct State {
    /// The signal that is ending the program, if any.
    ending: Option<i32>,
    /// Cancels the running command.
    command: CancelToken,
    interrupt: Interrupt,
}

/// What SIGINT stops: the program, or only the current answer.
#[derive(Default)]
enum Interrupt {
    #[default]
    Program,
    /// Only the answer that a chat is generating; nothing if there is none at the moment.
    Answer(Option<CancelToken>),
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the signal handlers. If that fails, signals keep their default action, which ends the program
/// immediately.
pub(crate) fn install() {
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
    #[cfg(unix)]
    if let Ok(mut signals) = signal_hook::iterator::Signals::new(not_ignored()) {
        let _ = thread::Builder::new().spawn(move || signals.forever().for_each(handle));
    }
    #[cfg(not(unix))]
    let _ = ctrlc::set_handler(|| handle(SIGINT));
}

/// Returns the signals to handle. Signals that the parent process ignores, for example with `nohup`, stay ignored. Only
/// Linux tells which signals those are.
#[cfg(unix)]
fn not_ignored() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = |signal: i32| ignored.unwrap_or(0) >> (signal - 1) & 1 == 1;
    [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal)).collect()
}

fn handle(signal: i32) {
    let mut state = state();
    if state.ending.is_some() {
        drop(state);
        exit_now(signal);
    }
    if let Interrupt::Answer(answer) = &state.interrupt {
        // A second SIGINT during the same answer ends the program.
        let is_first = answer.as_ref().is_none_or(|answer| !answer.is_cancelled());
        if let Some(answer) = answer {
            answer.cancel();
        }
        if signal == SIGINT && is_first {
            return;
        }
    }
    state.ending = Some(signal);
    state.command.cancel();
    drop(state);
    let last = thread::Builder::new().spawn(move || {
        thread::sleep(GRACE);
        exit_now(signal)
    });
    if last.is_err() {
        exit_now(signal);
    }
}

/// Exits immediately.
fn exit_now(signal: i32) -> ! {
    terminal::restore();
    scratch::remove();
    // This skips `atexit` handlers, because they free resources that other threads may still use.
    #[cfg(unix)]
    signal_hook::low_level::exit(code(signal).into());
    #[cfg(not(unix))]
    std::process::exit(code(signal).into());
}

fn code(signal: i32) -> u8 {
    128 + signal as u8
}

/// Returns a token that is cancelled when a signal ends the program.
pub(crate) fn cancel() -> CancelToken {
    state().command.clone()
}

/// Returns whether a signal is ending the program.
pub(crate) fn is_ending() -> bool {
    state().ending.is_some()
}

/// Returns the exit code for a command that a signal ended.
pub(crate) fn exit_code() -> u8 {
    code(state().ending.unwrap_or(SIGINT))
}

/// Makes SIGINT stop answers instead of the program.
pub(crate) fn interrupt_stops_answers() {
    state().interrupt = Interrupt::Answer(None);
}

/// Marks the start of an answer and returns the token that cancels it.
pub(crate) fn begin_answer() -> CancelToken {
    let mut state = state();
    let is_ending = state.ending.is_some();
    match &mut state.interrupt {
        Interrupt::Answer(answer) if !is_ending => answer.insert(CancelToken::default()).clone(),
        _ => state.command.clone(),
    }
}

/// Marks the end of an answer.
pub(crate) fn end_answer() {
    if let Interrupt::Answer(answer) = &mut state().interrupt {
        *answer = None;
    }
}
