//! What SIGINT, SIGTERM and SIGHUP end.
//!
//! A signal cancels what is computed and gives the command [`GRACE`] to keep what was done and to end by itself. After
//! that, or at the next signal, the program ends where it is. That covers what cannot be cancelled: a read that blocks, a
//! slow server, weights that are being loaded. Whatever must outlive the program (the journal of a batch, the history of
//! a chat) is therefore written when it is made, not at the end.
//!
//! Exit codes are 128 plus the number of the signal: 130, 143 and 129.
//!
//! SIGXFSZ ends nothing: the write that goes beyond the limit on a file's size (`ulimit -f`) fails, and is told as any
//! other.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use idefics_generate::CancelToken;

use crate::{scratch, terminal};

/// Time that a command has to end by itself.
const GRACE: Duration = Duration::from_millis(700);

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct State {
    /// The signal that ends the program.
    ending: Option<i32>,
    /// Cancels the command.
    command: CancelToken,
    interrupt: Interrupt,
}

/// What SIGINT ends.
#[derive(Default)]
enum Interrupt {
    #[default]
    Program,
    /// The answer of a conversation, if one is being given.
    Answer(Option<CancelToken>),
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handles signals from now on. Where that fails they end the program at once, which is no reason to refuse work.
pub(crate) fn install() {
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
    #[cfg(unix)]
    if let Ok(mut signals) = signal_hook::iterator::Signals::new(not_ignored()) {
        let _ = thread::Builder::new().spawn(move || signals.forever().for_each(received));
    }
    #[cfg(not(unix))]
    let _ = ctrlc::set_handler(|| received(SIGINT));
}

/// The signals to handle. What the program was started to ignore (by `nohup`, for example) stays ignored; only Linux
/// tells.
#[cfg(unix)]
fn not_ignored() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let is_ignored = |signal: i32| ignored.unwrap_or(0) >> (signal - 1) & 1 == 1;
    [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|&signal| !is_ignored(signal)).collect()
}

fn received(signal: i32) {
    let mut state = state();
    if state.ending.is_some() {
        drop(state);
        end(signal);
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
        end(signal)
    });
    if last.is_err() {
        end(signal);
    }
}

/// Ends the program where it is.
fn end(signal: i32) -> ! {
    terminal::restore();
    scratch::remove();
    // Without the handlers of `exit`: other threads still use what those would take down.
    #[cfg(unix)]
    signal_hook::low_level::exit(code(signal).into());
    #[cfg(not(unix))]
    std::process::exit(code(signal).into());
}

fn code(signal: i32) -> u8 {
    128 + signal as u8
}

/// Cancelled by the signal that ends the program.
pub(crate) fn cancel() -> CancelToken {
    state().command.clone()
}

/// Whether a signal is ending the program.
pub(crate) fn is_ending() -> bool {
    state().ending.is_some()
}

/// The exit code of a command that a signal ended.
pub(crate) fn exit_code() -> u8 {
    code(state().ending.unwrap_or(SIGINT))
}

/// From now on SIGINT ends answers, not the program.
pub(crate) fn converse() {
    state().interrupt = Interrupt::Answer(None);
}

/// Cancels the answer that begins now.
pub(crate) fn begin_answer() -> CancelToken {
    let mut state = state();
    let is_ending = state.ending.is_some();
    match &mut state.interrupt {
        Interrupt::Answer(answer) if !is_ending => answer.insert(CancelToken::default()).clone(),
        _ => state.command.clone(),
    }
}

/// The answer is over.
pub(crate) fn end_answer() {
    if let Interrupt::Answer(answer) = &mut state().interrupt {
        *answer = None;
    }
}
