//! `chat`: terminal handling, history and image paths.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tempfile::TempDir;

use crate::signals::{program, send, wait_for_end};
use crate::{photo, text};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A chat process in a pseudo-terminal.
struct Terminal {
    child: Child,
    keyboard: File,
    /// The terminal side, kept open so that its settings can be read after the process ends.
    line: File,
    screen: Arc<Mutex<Vec<u8>>>,
    state: TempDir,
}

impl Terminal {
    fn start(term: &str, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = OpenOptions::new().read(true).write(true).open(OsStr::from_bytes(name.to_bytes())).unwrap();
        let state = tempfile::tempdir().unwrap();
        let end = || Stdio::from(line.try_clone().unwrap());
        let child = program(args)
            .env("TERM", term)
            .env("XDG_STATE_HOME", state.path())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().unwrap();
        let screen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, keyboard, line, screen, state }
    }

    fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen has shown `words` at least `times` times.
    fn wait_for(&self, words: &str, times: usize) {
        let start = Instant::now();
        let count = || String::from_utf8_lossy(&self.screen.lock().unwrap()).matches(words).count();
        while count() < times {
            let screen = || String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned();
            assert!(start.elapsed() < TIMEOUT, "no {words:?} on the screen: {}", screen());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn history(&self) -> String {
        fs::read_to_string(self.state.path().join("idefics/history")).unwrap_or_default()
    }

    /// Waits until the line editor is reading keys (raw mode).
    fn wait_for_editor(&self) {
        let start = Instant::now();
        while !self.is_editing() {
            assert!(start.elapsed() < TIMEOUT, "no prompt");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_editing(&self) -> bool {
        !tcgetattr(self.line.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }
}

/// Sequence that the line editor writes at each prompt. It enables bracketed paste.
const EDITING: &str = "\x1b[?2004h";

const ENDLESS: [&str; 7] =
    ["chat", "--max-new-tokens", "1900", "--suppress-tokens", "2,476", "--do-image-splitting", "false"];

#[test]
fn signal_ends_chat_and_restores_the_terminal() {
    for (term, signal, code) in [("xterm", Signal::TERM, 143), ("dumb", Signal::TERM, 143), ("xterm", Signal::HUP, 129)]
    {
        let mut terminal = Terminal::start(term, &["chat", "--max-new-tokens", "2"]);
        terminal.wait_for("> ", 1);
        terminal.type_in("What is a question?\r");
        terminal.wait_for("> ", 2);
        terminal.wait_for("What is a question?", 1);
        let start = Instant::now();
        while terminal.history().is_empty() && start.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
        send(&terminal.child, signal);
        assert_eq!(wait_for_end(&mut terminal.child).code(), Some(code), "{term}");
        assert!(terminal.history().contains("What is a question?"), "{:?}", terminal.history());
        assert!(!terminal.is_editing(), "the terminal was left in raw mode");
    }
}

#[test]
fn interrupt_stops_the_answer_but_not_the_chat() {
    let mut terminal = Terminal::start("xterm", &ENDLESS);
    terminal.wait_for("> ", 1);
    terminal.type_in("Talk\r");
    let start = Instant::now();
    while terminal.is_editing() && start.elapsed() < TIMEOUT {
        std::thread::sleep(Duration::from_millis(1)); // until the editor has accepted the line
    }
    let n_shown = || terminal.screen.lock().unwrap().len();
    let before = n_shown();
    while n_shown() < before + 64 && start.elapsed() < TIMEOUT {
        std::thread::sleep(Duration::from_millis(1)); // until the answer has begun
    }
    send(&terminal.child, Signal::INT);
    terminal.wait_for("[stopped]", 1);
    terminal.wait_for_editor();
    terminal.type_in("/undo\r");
    terminal.wait_for("removed the last question", 1);
    terminal.wait_for_editor();
    terminal.wait_for(EDITING, 3);
    terminal.type_in("half a line\x03"); // Ctrl-C discards the line
    terminal.wait_for(EDITING, 4);
    terminal.type_in("/help\r");
    terminal.wait_for("start a new conversation", 1);
    terminal.wait_for(EDITING, 5);
    terminal.type_in("\x04"); // Ctrl-D ends the chat
    assert_eq!(wait_for_end(&mut terminal.child).code(), Some(0));
}

/// Runs a chat that must end with the exit code `code`. Returns what it writes to standard output and standard error.
fn chat(home: &std::path::Path, input: &[u8], code: i32) -> (String, String) {
    let mut command = program(&["chat", "--max-new-tokens", "2", "--do-image-splitting", "false"]);
    let mut child = command.env("HOME", home).env("XDG_STATE_HOME", home.join("state")).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn accepts_home_folder_spaces_and_escapes_in_paths() {
    let home = tempfile::tempdir().unwrap();
    fs::copy(photo(), home.path().join("a photo.jpg")).unwrap();
    fs::copy(photo(), home.path().join(OsStr::from_bytes(b"caf\xe9.jpg"))).unwrap();
    let mut input = b"\xef\xbb\xbf/image ~/a photo.jpg\r\n/image ~/a\\ photo.jpg\r\n".to_vec();
    input.extend(b"/image ~/caf\xe9.jpg\n/image ~/no-such.jpg\nWhat is it?\n/save ~/talk.json\n/reset\n");
    input.extend(b"/image ~/a photo.jpg\nWhat \xff?\nWhat?\n/save ~/talk.json\n");
    let (answers, stderr) = chat(home.path(), &input, 1);
    assert_eq!(answers.lines().count(), 2, "{answers:?}");
    assert!(stderr.contains("3 images with") && stderr.contains("no-such.jpg: there is no such file"), "{stderr}");
    assert!(!stderr.contains("os error"), "{stderr}");
    // A path that is not UTF-8 cannot be saved as JSON.
    assert!(stderr.contains("rename the file") && stderr.contains("saved to"), "{stderr}");
    assert!(stderr.contains("the question is not UTF-8") && stderr.contains("1 of 3 questions failed"), "{stderr}");
    assert!(home.path().join("talk.json").exists());
}

#[test]
fn save_replaces_only_files_of_the_same_chat() {
    let home = tempfile::tempdir().unwrap();
    let (notes, talk) = (home.path().join("notes.txt"), home.path().join("talk.json"));
    fs::write(&notes, "precious").unwrap();
    let (_, stderr) = chat(home.path(), b"/save ~/notes.txt\nOne?\n/save ~/talk.json\nTwo?\n/save ~/talk.json\n", 0);
    assert!(stderr.contains("notes.txt: already exists") && stderr.contains("give another name"), "{stderr}");
    assert_eq!(fs::read_to_string(&notes).unwrap(), "precious");
    assert_eq!(stderr.matches("saved to").count(), 2, "{stderr}");
    let saved = fs::read_to_string(&talk).unwrap();
    assert!(saved.contains("One?") && saved.contains("Two?"), "{saved}");
    let is_file = |entry: &fs::DirEntry| entry.file_type().unwrap().is_file();
    let n_files = fs::read_dir(home.path()).unwrap().map(Result::unwrap).filter(is_file).count();
    assert_eq!(n_files, 2, "no temporary file is left");

    // Another chat does not replace the file.
    let (_, stderr) = chat(home.path(), b"Three?\n/save ~/talk.json\n", 0);
    assert!(stderr.contains("talk.json: already exists"), "{stderr}");
    assert_eq!(fs::read_to_string(&talk).unwrap(), saved);
}

#[test]
fn history_is_saved_when_the_chat_fails() {
    let home = tempfile::tempdir().unwrap();
    let input = "First\n/image missing.png\n/nonsense\nSecond\n";
    let output = program(&["chat", "--max-new-tokens", "2"])
        .env("HOME", home.path())
        .env("XDG_STATE_HOME", home.path().join("state"))
        .stdin(Stdio::from({
            let file = home.path().join("in.txt");
            fs::write(&file, input).unwrap();
            File::open(file).unwrap()
        }))
        .stdout(Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let history = fs::read_to_string(home.path().join("state/idefics/history")).unwrap();
    assert!(history.contains("First"), "{history}");
}

#[test]
fn file_names_need_not_be_utf8() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join(OsStr::from_bytes(b"caf\xe9.jpg"));
    fs::copy(photo(), &image).unwrap();
    let run = |command: &mut Command| command.stdin(Stdio::null()).output().unwrap();
    for (before, after) in [
        (&["caption"][..], &["--max-new-tokens", "1"][..]),
        (&["ask"], &["What?", "--max-new-tokens", "1"]),
        (&["classify"], &["--labels", "a,b", "--max-new-tokens", "1"]),
        (&["classify"], &["--labels", "a,b", "--rank"]),
        (&["chat"], &["--max-new-tokens", "1"]),
    ] {
        let output = run(program(before).arg(&image).args(after));
        assert!(output.status.success(), "{before:?}: {}", text(&output.stderr));
    }
    let output = run(program(&["ask"]).arg(&image).arg(OsStr::from_bytes(b"caf\xe9?")));
    assert!(output.status.code() == Some(2), "{}", text(&output.stderr));

    // Names of model folders, prompt files and outputs need not be UTF-8 either.
    let place = folder.path().join(OsStr::from_bytes(b"d\xe9p\xf4t"));
    fs::create_dir(&place).unwrap();
    for file in fs::read_dir(crate::checkpoint()).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, place.join(file.file_name().unwrap())).unwrap();
    }
    fs::write(place.join("prompts.json"), "{\"text\": \"Hello\"}").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_idefics"));
    command.arg("--model").arg(&place).args(["generate", "--max-new-tokens", "1", "--prompt-file"]);
    let output = run(command.arg(place.join("prompts.json")));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = run(program(&["batch"]).arg(place.join("prompts.json")).arg("--output").arg(place.join("out.jsonl")));
    assert!(output.status.success() && place.join("out.jsonl").exists(), "{}", text(&output.stderr));
}
