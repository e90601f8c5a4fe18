//! The lines of a conversation and their history.

use std::io::{self, ErrorKind, IsTerminal};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::failure::Failure;
use crate::{input, signals, terminal};

/// Longest line that is read from a pipe, in bytes.
const MAX_LINE: usize = 1 << 20;

/// Reads lines from a terminal, with editing, or from a pipe.
pub(super) struct Lines {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    is_terminal: bool,
    is_first: bool,
}

impl Lines {
    /// Begins to read standard input. From a terminal Ctrl-C ends answers from now on; whoever feeds a pipe expects SIGINT
    /// to end the program.
    pub(super) fn open() -> Result<Self, Failure> {
        let is_terminal = io::stdin().is_terminal();
        if is_terminal {
            terminal::remember();
            signals::converse();
        }
        let mut editor = DefaultEditor::new().map_err(failed)?;
        let history = history_file();
        if let Some(history) = &history {
            let _ = editor.load_history(history); // there is none at first
        }
        Ok(Self { editor, history, is_terminal, is_first: true })
    }

    /// The next line that is not empty, without the space around it; `None` at the end. It is in the history before
    /// anything is done about it, so that no end of the program loses it.
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
                    let _ = self.editor.append_history(history); // a history is no reason to fail
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
                Err(ReadlineError::Interrupted) => {} // the line is given up
                Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => say!("error: not UTF-8"),
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn read_pipe(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut line = Vec::new();
        let len = input::read_line(&mut io::stdin().lock(), MAX_LINE, &mut line);
        let len = len.map_err(|error| Failure::of_io("standard input", &error))?;
        if len > MAX_LINE {
            return Err(Failure::limit(format!("a line of {len} bytes; at most {MAX_LINE} are read")));
        }
        if std::mem::take(&mut self.is_first) {
            line = input::without_mark(&line).map_err(Failure::input)?.to_vec();
        }
        Ok((len > 0).then_some(line))
    }
}

fn failed(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => Failure::of_io("the terminal", &error),
        error => Failure::file_system(format!("the terminal: {error}")),
    }
}

/// Where questions are remembered, if the user has a folder for such things.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|state| !state.is_empty()).map(PathBuf::from);
    let folder = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?.join("idefics");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
