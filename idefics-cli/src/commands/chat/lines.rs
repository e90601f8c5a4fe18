//! Reads the lines of a chat and stores their history.

use std::io::{self, ErrorKind, IsTerminal};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::failure::Failure;
use crate::{input, signals, terminal};

/// Maximum length of a line from a pipe, in bytes.
const MAX_LINE: usize = 1 << 20;

/// Reads lines from a terminal with line editing, or from a pipe.
pub(super) struct Lines {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    is_terminal: bool,
    is_first: bool,
}

impl Lines {
    /// Starts to read standard input. At a terminal, Ctrl-C then stops only the current answer. With a pipe, SIGINT
    /// ends the program, because the process that writes to the pipe expects that.
    pub(super) fn open() -> Result<Self, Failure> {
        let is_terminal = io::stdin().is_terminal();
        if is_terminal {
            terminal::remember();
            signals::interrupt_stops_answers();
        }
        let mut editor = DefaultEditor::new().map_err(failed)?;
        let history = history_file();
        if let Some(history) = &history {
            let _ = editor.load_history(history); // missing on first use
        }
        Ok(Self { editor, history, is_terminal, is_first: true })
    }

    /// Returns whether the lines are typed at a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Returns the next non-empty line without surrounding space, or `None` at the end of the input. The line is added
    /// to the history before it is returned, so that it is kept even if the program is killed.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            let line = match self.is_terminal {
                true => self.read_terminal()?,
                false => self.read_pipe()?,
            };
            if signals::is_ending() {
                return Err(Failure::interrupted());
            }
            let Some(line) = line else { return Ok(None) };
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            if let Ok(text) = str::from_utf8(line) {
                let _ = self.editor.add_history_entry(text);
                if let Some(history) = &self.history {
                    let _ = self.editor.append_history(history); // the history is optional
                }
            }
            return Ok(Some(line.to_vec()));
        }
    }

    fn read_terminal(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            match self.editor.readline("> ") {
                Ok(line) => return Ok(Some(line.into_bytes())),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(_) if signals::is_ending() => return Err(Failure::interrupted()),
                Err(ReadlineError::Interrupted) => {} // discard the line
                Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => say!("error: invalid UTF-8"),
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn read_pipe(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut line = Vec::new();
        let len = input::read_line(&mut io::stdin().lock(), MAX_LINE, &mut line);
        let len = len.map_err(|error| Failure::io_named("standard input", &error))?;
        if len > MAX_LINE {
            return Err(Failure::limit(format!(
                "standard input: a line has {len} bytes; at most {MAX_LINE} are allowed"
            )));
        }
        if std::mem::take(&mut self.is_first) {
            line = input::strip_byte_order_mark(&line).map_err(Failure::input)?.to_vec();
        }
        Ok((len > 0).then_some(line))
    }
}

fn failed(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => Failure::io_named("the terminal", &error),
        error => Failure::file_system(format!("the terminal: {error}")),
    }
}

/// Returns the path of the history file in the user's state folder, or `None` if there is no such folder.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|state| !state.is_empty()).map(PathBuf::from);
    let folder = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?.join("idefics");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
