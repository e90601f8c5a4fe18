//! `idefics chat`

mod lines;
mod path;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use idefics_generate::processor::image::ImageSource;
use idefics_generate::processor::{Content, Message};
use idefics_generate::{Conversation, ErrorKind, FinishReason, GenerationConfig, Idefics};
use serde_json::{Value, json};

use crate::args::{self, ChatArgs, Global};
use crate::failure::Failure;
use crate::media::Media;
use crate::output::{Chunks, check_parent, report_refusal, warn_about};
use crate::{commands, signals};

use lines::Lines;

const HELP: &str = "\
/image PATH  add an image or video to the next question (a path, or the URL of an image; may be repeated)
/undo        remove the last question, its images and its answer
/reset       start a new conversation
/save PATH   save the conversation as a prompt file for `idefics generate`; does not overwrite other files
/help        print this help
PATH may start with ~ and may be quoted. Ctrl-C stops an answer, Ctrl-D ends the program.";

/// Reads questions and answers them until the input ends.
pub(crate) fn run(global: &Global, args: &ChatArgs) -> Result<(), Failure> {
    commands::check_images(&args.images)?;
    let options = args.generation.options();
    check_single_answer(&options)?; // before the model is loaded
    let model = commands::load(global, &options)?;
    if !model.processor().can_chat() {
        let message = "this model has no chat template; use `generate`, or a model that was trained to chat";
        return Err(Failure::usage(message.to_owned()));
    }
    check_single_answer(&options.over(model.generation_config()))?;
    let mut chat = Chat {
        global,
        args,
        system: args.system.iter().map(|text| Message::text("system", text)).collect(),
        conversation: Conversation::new(&model, args.generation.process(global)),
        images: args.images.iter().map(|image| Media::of(image.clone(), &model, &global.image_limits())).collect(),
        model: &model,
        saved: Vec::new(),
    };
    chat.reset();
    chat.read(&model)
}

/// Rejects beam search and several answers, with which every question would fail.
fn check_single_answer(options: &GenerationConfig) -> Result<(), Failure> {
    match options.is_streamable() {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "chat needs a single answer that is generated token by token, but num_beams is {} and num_return_sequences \
             is {}; omit --num-beams and --num-return-sequences, or set them to 1 if the model folder sets them",
            options.num_beams(),
            options.num_return_sequences()
        ))),
    }
}

struct Chat<'a> {
    global: &'a Global,
    args: &'a ChatArgs,
    system: Vec<Message>,
    conversation: Conversation<'a>,
    model: &'a Idefics,
    /// Images and videos for the next question.
    images: Vec<Media>,
    /// Files that this chat has saved and may replace.
    saved: Vec<PathBuf>,
}

impl Chat<'_> {
    fn read(&mut self, model: &Idefics) -> Result<(), Failure> {
        let mut lines = Lines::open()?;
        say!("type /help for a list of commands");
        if self.global.verbose {
            say!("context length: {} tokens", model.model().shape().text.max_position_embeddings);
        }
        let (mut n_questions, mut n_failed) = (0, 0);
        while let Some(line) = lines.next()? {
            let command = line.strip_prefix(b"/");
            let said = match command {
                Some(command) => self.command(command),
                None => match str::from_utf8(&line) {
                    Ok(question) => self.ask(question),
                    Err(error) => Err(Failure::input(format!("the question is not UTF-8: {error}"))),
                },
            };
            n_questions += usize::from(command.is_none());
            match said {
                _ if signals::is_ending() => return Err(Failure::interrupted()),
                Ok(()) => {}
                Err(failure) if failure.affects_one_input() || failure.is_usage() => {
                    failure.warn();
                    n_failed += usize::from(command.is_none());
                }
                Err(failure) => return Err(failure),
            }
        }
        // At a terminal, the user has seen the failures and could ask again.
        match n_failed {
            1.. if !lines.is_terminal() => Err(Failure::questions_failed(n_failed, n_questions)),
            _ => Ok(()),
        }
    }

    fn command(&mut self, command: &[u8]) -> Result<(), Failure> {
        let end = command.iter().position(u8::is_ascii_whitespace).unwrap_or(command.len());
        let (name, typed) = (&command[..end], command[end..].trim_ascii());
        match (name, typed) {
            (b"image", b"") => return Err(Failure::usage("/image needs a path; type /image PATH".to_owned())),
            (b"image", typed) => {
                let name = path::parse(typed);
                let named = name.display().to_string();
                let image = args::image(name).map_err(|error| Failure::input(format!("{named}: {error}")))?;
                commands::check_images([&image])?;
                self.images.push(Media::of(image, self.model, &self.global.image_limits()));
                say!("will show {} with the next question", count(self.images.len(), "image"));
            }
            (b"undo", _) => {
                let messages = self.conversation.messages_mut();
                let last = messages.iter().rposition(|message| message.role == "user");
                match last {
                    Some(last) => messages.truncate(last),
                    None => return Err(Failure::usage("there is no question to remove".to_owned())),
                }
                say!("removed the last question and its answer; {} left", count(self.questions(), "question"));
            }
            (b"reset", _) => {
                self.images.clear();
                self.reset();
                say!("started a new conversation");
            }
            (b"save", b"") => return Err(Failure::usage("/save needs a path; type /save PATH".to_owned())),
            (b"save", typed) => self.save(Path::new(&path::parse(typed)))?,
            (b"help" | b"?", _) => say!("{HELP}"),
            _ => {
                let name = String::from_utf8_lossy(name);
                return Err(Failure::usage(format!("/{name} is not a command; type /help for a list of commands")));
            }
        }
        Ok(())
    }

    /// Saves the conversation as a prompt file. Replaces the file only if this chat has saved it before.
    fn save(&mut self, path: &Path) -> Result<(), Failure> {
        let messages = self.conversation.messages().iter().map(message_json);
        let messages: Vec<Value> = messages.collect::<Result<_, _>>()?;
        let sample = json!({"messages": messages, "add_generation_prompt": true});
        let content = format!("{sample:#}\n");
        check_parent(path)?;
        let is_own = self.saved.iter().any(|saved| saved == path);
        let written = if is_own { replace(path, content.as_bytes()) } else { create(path, content.as_bytes()) };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let reason = "already exists and is not overwritten; give another name: /save PATH";
                Failure::file_system(format!("{}: {reason}", path.display()))
            }
            _ => Failure::io(path, &error),
        })?;
        if !is_own {
            self.saved.push(path.to_owned());
        }
        say!("saved to {}", path.display());
        Ok(())
    }

    fn reset(&mut self) {
        self.conversation.messages_mut().clone_from(&self.system);
    }

    fn questions(&self) -> usize {
        self.conversation.messages().iter().filter(|message| message.role == "user").count()
    }

    fn ask(&mut self, question: &str) -> Result<(), Failure> {
        let cancel = signals::begin_answer();
        let mut content: Vec<Content> = self.images.iter().cloned().map(Content::from).collect();
        content.push(Content::text(question));
        let controls = self.args.generation.controls(self.global, None, &cancel);
        let mut stdout = io::stdout().lock();
        let mut chunks = Chunks::new(String::new());
        let is_json = self.global.json;
        let answer = self.conversation.ask(content, &self.args.generation.options(), controls, |chunk| {
            if !is_json && !chunks.write(&mut stdout, chunk) {
                cancel.cancel();
            }
        });
        signals::end_answer();
        let answer = match answer {
            // A signal interrupted the reading of an image, before the first token.
            Err(error) if error.kind() == ErrorKind::Cancelled && !signals::is_ending() => {
                say!("[stopped]");
                return Ok(());
            }
            answer => answer.map_err(Failure::sample)?,
        };
        chunks.finish()?;
        self.images.clear(); // after an error, they are kept for another attempt
        match is_json {
            true => writeln!(stdout, "{}", serde_json::to_string(&answer).map_err(io::Error::from)?)?,
            false if answer.finish_reason == FinishReason::Cancelled => writeln!(stdout, " [stopped]")?,
            false => writeln!(stdout)?,
        }
        warn_about(&answer);
        if self.global.verbose {
            let timings = &answer.timings;
            say!(
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

/// Creates a file. If writing fails, no partial file is left.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is something at `path`; it is unchanged.
fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content).inspect_err(|_| {
        _ = fs::remove_file(path); // the error of writing is the one to report
    })
}

/// Replaces a file. If writing fails, the earlier file is unchanged.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut unfinished = tempfile::NamedTempFile::new_in(folder)?;
    unfinished.write_all(content)?;
    if let Ok(earlier) = fs::metadata(path) {
        unfinished.as_file().set_permissions(earlier.permissions())?;
    }
    unfinished.persist(path).map(|_| ()).map_err(|error| error.error)
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Converts a message to the JSON form of prompt files.
///
/// # Errors
/// If an image path is not UTF-8.
fn message_json(message: &Message) -> Result<Value, Failure> {
    for part in message.parts() {
        let paths = match part {
            Content::Image { source: Some(ImageSource::Path(path)), .. } => vec![path.clone()],
            Content::Video { source: Some(video), .. } => video.files(),
            _ => Vec::new(),
        };
        if let Some(path) = paths.iter().find(|path| path.to_str().is_none()) {
            let reason = "a file name that is not UTF-8 cannot be saved as JSON; rename the file";
            return Err(Failure::input(format!("{}: {reason}", path.display())));
        }
    }
    Ok(message.to_json())
}
