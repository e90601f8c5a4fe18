//! `idefics classify`

use clap::{ArgGroup, Args};
use idefics_generate::processor::image::ImageSource;
use idefics_generate::{Grammar, RankOptions};

use super::{GenerationArgs, image_parser};
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("given_labels").args(["labels", "label"]).required(true).multiple(true))]
pub(crate) struct ClassifyArgs {
    /// The image: a path, an http(s) URL or a data URL.
    #[arg(value_name = "IMAGE", value_parser = image_parser())]
    pub(crate) image: ImageSource,
    /// The labels, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "LABEL,…")]
    labels: Vec<String>,
    /// A single label, which may contain commas. Repeat the option for several labels.
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
    /// The question to ask [default: a question that lists the labels].
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// Score every label instead of generating an answer, and print all labels with their probabilities. The scores
    /// depend on all tokens of a label; an answer is chosen token by token.
    #[arg(long)]
    pub(crate) rank: bool,
    /// With --rank: divide the log-likelihood of a label by its number of tokens.
    #[arg(long, requires = "rank")]
    pub(crate) normalize_length: bool,
    /// With --rank: subtract the log-likelihood of the label without the image, so that common words have no
    /// advantage.
    #[arg(long, requires = "rank")]
    pub(crate) calibrate: bool,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

impl ClassifyArgs {
    /// Returns all labels without surrounding space.
    ///
    /// # Errors
    /// If a label is empty or was given twice.
    pub(crate) fn labels(&self) -> Result<Vec<String>, Failure> {
        let mut labels: Vec<String> = Vec::new();
        for label in self.labels.iter().chain(&self.label).map(|label| label.trim()) {
            if label.is_empty() {
                return Err(Failure::usage("a label is empty; separate labels with single commas".to_owned()));
            }
            if labels.iter().any(|other| other == label) {
                return Err(Failure::usage(format!("the label {label:?} is given twice")));
            }
            labels.push(label.to_owned());
        }
        Ok(labels)
    }

    /// Returns the grammar whose only answers are the labels.
    ///
    /// # Errors
    /// If a generation option cannot be combined with it.
    pub(crate) fn grammar(&self, labels: &[String]) -> Result<Grammar, Failure> {
        let grammar = Grammar::choices(labels).map_err(|error| Failure::grammar("--labels", error))?;
        grammar.check_options(&self.generation.options()).map_err(|error| {
            Failure::usage(format!("the labels are a grammar, because they are the only answers: {error}"))
        })?;
        Ok(grammar)
    }

    pub(crate) fn rank_options(&self) -> RankOptions {
        RankOptions { normalize_length: self.normalize_length, calibrate: self.calibrate }
    }
}
