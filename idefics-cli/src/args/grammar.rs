//! Options that make answers follow a grammar.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use idefics_generate::{Error, GenerationConfig, Grammar};

use crate::failure::Failure;
use crate::input::strip_byte_order_mark;

/// Maximum number of bytes to read from a schema file. A valid schema is smaller, so a longer file is rejected.
const MAX_SCHEMA: u64 = 1 << 20;

/// The form that answers must have. At most one kind can be given.
#[derive(Debug, Args)]
pub(crate) struct GrammarArgs {
    /// JSON schema that answers satisfy. Allow enough tokens with --max-new-tokens: an answer that is cut is not valid
    /// JSON.
    #[arg(long, value_name = "FILE", help_heading = "Form of the answer")]
    #[arg(conflicts_with_all = ["regex", "choices", "choice"])]
    json_schema: Option<PathBuf>,
    /// Regular expression that the whole answer matches, in the syntax of Rust's crate `regex`.
    #[arg(long, value_name = "REGEX", help_heading = "Form of the answer", conflicts_with_all = ["choices", "choice"])]
    regex: Option<String>,
    /// Texts separated by commas; the answer is one of them.
    #[arg(long, value_name = "TEXT,…", help_heading = "Form of the answer", value_delimiter = ',')]
    choices: Vec<String>,
    /// A single text, which may contain commas. Repeat the option for several texts.
    #[arg(long, value_name = "TEXT", help_heading = "Form of the answer")]
    choice: Vec<String>,
}

impl GrammarArgs {
    /// Returns the grammar that was given, if any.
    ///
    /// # Errors
    /// If the file cannot be read, if the grammar is invalid, or if it cannot be combined with `options`.
    pub(crate) fn grammar(&self, options: &GenerationConfig) -> Result<Option<Grammar>, Failure> {
        let choices: Vec<String> = self.choices.iter().chain(&self.choice).cloned().collect();
        let (name, grammar) = match (&self.json_schema, &self.regex) {
            (Some(path), _) => (path.display().to_string(), Grammar::from_json_schema_text(&read(path)?)),
            (None, Some(regex)) => ("--regex".to_owned(), Grammar::regex(regex)),
            (None, None) if choices.is_empty() => return Ok(None),
            (None, None) => ("--choices".to_owned(), Grammar::choices(choices)),
        };
        let grammar = grammar.map_err(|error| Failure::grammar(&name, error))?;
        grammar.check_options(options).map_err(|error| Failure::from(Error::from(error)))?;
        Ok(Some(grammar))
    }
}

/// Reads the text of a schema.
fn read(path: &Path) -> Result<String, Failure> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SCHEMA).read_to_end(&mut text));
    read.map_err(|error| Failure::io(path, &error))?;
    let text = strip_byte_order_mark(&text).map(<[u8]>::to_vec);
    let text = text.and_then(|text| String::from_utf8(text).map_err(|error| format!("not UTF-8: {error}")));
    text.map_err(|reason| Failure::usage(format!("{}: {reason}", path.display())))
}
