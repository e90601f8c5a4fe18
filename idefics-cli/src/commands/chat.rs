//! `idefics chat`

use std::io::{self, Write};
use std::path::PathBuf;

use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message};
use idefics_generate::{Conversation, FinishReason, Idefics};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use crate::args::{ChatArgs, Global};
use crate::failure::Failure;
use crate::model::Interrupts;
use crate::output::{Chunks, report_refusal};
use crate::{commands, model};

const HELP: &str = "\
/image PATH  show an image with the next question (a path or URL; may be repeated)
/undo        take back the last question with its images, and its answer
/reset       begin anew
/save PATH   write the conversation as a prompt file for `idefics generate`
/help        this
Ctrl-C ends an answer, Ctrl-D the program.";

/// Reads questions and answers them until the input ends.
pub(crate) fn run(global: &Global, args: &ChatArgs) -> Result<(), Failure> {
    commands::check_images(&args.images)?;
    let model = model::load(global)?;
    if !model.processor().can_chat() {
        let message = "this model has no chat template: use `generate`, or a model that was trained to chat";
        return Err(Failure::usage(message.to_owned()));
    }
    commands::warn(global, &model, &args.generation.options());
    let mut chat = Chat {
        global,
        args,
        interrupts: model::interrupts(),
        system: args.system.iter().map(|text| Message::text("system", text)).collect(),
        conversation: Conversation::new(&model, args.generation.process()),
        images: args.images.clone(),
    };
    chat.reset();
    chat.read(&model)
}

struct Chat<'a> {
    global: &'a Global,
    args: &'a ChatArgs,
    interrupts: Interrupts,
    system: Vec<Message>,
    conversation: Conversation<'a>,
    /// Shown with the next question.
    images: Vec<ImageSource>,
}

impl Chat<'_> {
    fn read(&mut self, model: &Idefics) -> Result<(), Failure> {
        let terminal = |error: ReadlineError| Failure::file_system(format!("the terminal: {error}"));
        let mut editor = DefaultEditor::new().map_err(terminal)?;
        let history = history_file();
        if let Some(history) = &history {
            let _ = editor.load_history(history); // there is none at first
        }
        eprintln!("/help says what there is");
        if self.global.verbose {
            eprintln!("{} tokens of context", model.model().max_position_embeddings());
        }
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue, // the line is given up
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(terminal(error)),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(line);
            let said = match line.strip_prefix('/') {
                Some(command) => self.command(command),
                None => self.ask(line),
            };
            match said {
                Ok(()) => {}
                Err(failure) if failure.is_of_one_input() || failure.is_usage() => failure.warn(),
                Err(failure) => return Err(failure),
            }
        }
        if let Some(history) = history {
            let _ = editor.save_history(&history); // a history is no reason to fail
        }
        Ok(())
    }

    fn command(&mut self, command: &str) -> Result<(), Failure> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("image", "") => return Err(Failure::usage("/image needs a path".to_owned())),
            ("image", path) => {
                let path = unquoted(path);
                let image: ImageSource = path.parse().map_err(|error| Failure::input(format!("{path}: {error}")))?;
                commands::check_images([&image])?;
                self.images.push(image);
                eprintln!("{} with the next question", count(self.images.len(), "image"));
            }
            ("undo", _) => {
                let messages = self.conversation.messages_mut();
                let last = messages.iter().rposition(|message| message.role == "user");
                match last {
                    Some(last) => messages.truncate(last),
                    None => return Err(Failure::usage("nothing was asked yet".to_owned())),
                }
                eprintln!("taken back; {} left", count(self.questions(), "question"));
            }
            ("reset", _) => {
                self.images.clear();
                self.reset();
                eprintln!("begun anew");
            }
            ("save", "") => return Err(Failure::usage("/save needs a path".to_owned())),
            ("save", path) => {
                let messages: Vec<Value> = self.conversation.messages().iter().map(Message::to_json).collect();
                let sample = json!({"messages": messages, "add_generation_prompt": true});
                std::fs::write(path, format!("{sample:#}\n"))
                    .map_err(|error| Failure::file_system(format!("{path}: {error}")))?;
                eprintln!("saved to {path}");
            }
            ("help" | "?", _) => eprintln!("{HELP}"),
            _ => return Err(Failure::usage(format!("/{name} is no command; /help lists them"))),
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.conversation.messages_mut().clone_from(&self.system);
    }

    fn questions(&self) -> usize {
        self.conversation.messages().iter().filter(|message| message.role == "user").count()
    }

    fn ask(&mut self, question: &str) -> Result<(), Failure> {
        let cancel = self.interrupts.begin();
        let mut content: Vec<Content> = self.images.iter().cloned().map(Content::image).collect();
        content.push(Content::text(question));
        let controls = self.args.generation.controls(self.global, &cancel);
        let mut stdout = io::stdout().lock();
        let mut chunks = Chunks::new(String::new());
        let is_json = self.global.json;
        let answer = self.conversation.ask(content, &self.args.generation.options(), controls, |chunk| {
            if !is_json && !chunks.write(&mut stdout, chunk) {
                cancel.cancel();
            }
        });
        self.interrupts.end();
        let answer = answer.map_err(Failure::of_sample)?;
        chunks.finish()?;
        self.images.clear(); // an error leaves them for the next attempt
        match is_json {
            true => writeln!(stdout, "{}", serde_json::to_string(&answer).map_err(io::Error::from)?)?,
            false if answer.finish_reason == FinishReason::Cancelled => writeln!(stdout, " [stopped]")?,
            false => writeln!(stdout)?,
        }
        if self.global.verbose {
            let timings = &answer.timings;
            eprintln!(
                "{} of {} prompt tokens computed, {} generated; ms: vision {:.1}, prefill {:.1}, decoding {:.1}",
                self.conversation.computed_tokens(),
                answer.usage.prompt_tokens,
                answer.usage.completion_tokens,
                timings.vision_ms,
                timings.prefill_ms,
                timings.decode_ms
            );
            report_refusal(&answer);
        }
        Ok(())
    }
}

/// A path as terminals paste it: in quotes if it has spaces.
fn unquoted(path: &str) -> &str {
    let inner = |quote: char| path.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"')).unwrap_or(path)
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Where questions are remembered, if the user has a folder for such things.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let folder = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?.join("idefics");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
