//! Leaves the terminal as it was when the program ends inside the line editor.

#[cfg(unix)]
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

#[cfg(unix)]
static SETTINGS: std::sync::OnceLock<Termios> = std::sync::OnceLock::new();

/// Remembers the settings of the terminal that is standard input.
pub(crate) fn remember() {
    #[cfg(unix)]
    if let Ok(settings) = tcgetattr(std::io::stdin()) {
        let _ = SETTINGS.set(settings);
    }
}

/// Restores them, and ends the line of the prompt.
pub(crate) fn restore() {
    #[cfg(unix)]
    if let Some(settings) = SETTINGS.get() {
        let stdin = std::io::stdin();
        let is_editing = tcgetattr(&stdin).is_ok_and(|now| !now.local_modes.contains(LocalModes::ICANON));
        let _ = tcsetattr(&stdin, OptionalActions::Now, settings);
        if is_editing {
            // Bracketed paste off. Written to the terminal itself: another thread may hold standard output.
            let _ = rustix::io::write(&stdin, b"\x1b[?2004l\r\n");
        }
    }
}
