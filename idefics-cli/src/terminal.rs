//! Restores the terminal settings when the program exits from within the line editor.

#[cfg(unix)]
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

#[cfg(unix)]
static SETTINGS: std::sync::OnceLock<Termios> = std::sync::OnceLock::new();

/// Saves the settings of the terminal at standard input.
pub(crate) fn remember() {
    #[cfg(unix)]
    if let Ok(settings) = tcgetattr(std::io::stdin()) {
        let _ = SETTINGS.set(settings);
    }
}

/// Restores the saved settings. If the line editor is waiting for input, also moves to a new line after the prompt.
pub(crate) fn restore() {
    #[cfg(unix)]
    if let Some(settings) = SETTINGS.get() {
        let stdin = std::io::stdin();
        let is_editing = tcgetattr(&stdin).is_ok_and(|now| !now.local_modes.contains(LocalModes::ICANON));
        let _ = tcsetattr(&stdin, OptionalActions::Now, settings);
        if is_editing {
            // This disables bracketed paste. It is written through standard input, because another thread may have
            // locked standard output.
            let _ = rustix::io::write(&stdin, b"\x1b[?2004l\r\n");
        }
    }
}
