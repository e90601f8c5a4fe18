//! `idefics ask`

use std::ffi::OsStr;
use std::path::Path;

use crate::args::{self, AskArgs, Global};
use crate::failure::Failure;
use crate::media::{self, Media};
use crate::{commands, output, signals};

/// Returns whether an argument is the path of a file or folder, or a URL.
fn names_image(argument: &OsStr) -> bool {
    let is_url = |text: &str| ["http://", "https://", "data:"].iter().any(|start| text.starts_with(start));
    Path::new(argument).exists() || argument.to_str().is_some_and(is_url)
}

/// Answers a question about all the images and videos together.
pub(crate) fn run(global: &Global, given: &AskArgs) -> Result<(), Failure> {
    let Some((question, images)) = given.images_and_question.split_last() else {
        return Err(Failure::usage("no question is given; give it as the last argument, in quotes".to_owned()));
    };
    let path = Path::new(question);
    if images.is_empty() && (path.is_file() || path.is_dir()) {
        let kind = if path.is_file() { "file" } else { "folder" };
        let name = question.display();
        return Err(Failure::usage(format!("{name} is a {kind}; give the question after it, in quotes")));
    }
    if let Some(missing) = images.iter().find(|image| !names_image(image)).filter(|_| names_image(question)) {
        let (missing, name) = (missing.display(), question.display());
        return Err(Failure::usage(format!(
            "{missing} is not a file, but the last argument {name} is an image; give the images first and then the \
             question, as in: idefics ask {name} {:?}",
            missing.to_string()
        )));
    }
    let Some(question) = question.to_str() else {
        let question = question.display();
        return Err(Failure::usage(format!("the last argument must be the question, but {question} is not UTF-8")));
    };
    let images = images.iter().cloned().map(args::image).collect::<Result<Vec<_>, _>>();
    let images = images.map_err(|error| Failure::input(error.to_string()))?;
    commands::check_images(&images)?;
    let options = given.generation.options();
    let grammar = given.grammar.grammar(&options)?;
    let model = commands::load(global, &options)?;
    let grammar = commands::compile(&model, grammar.as_ref())?;
    let cancel = signals::cancel();
    let plain = format!("Question: {question} Answer:");
    let limits = global.image_limits();
    let media = images.into_iter().map(|image| Media::of(image, &model, &limits)).collect();
    let (sample, process) = (commands::sample(&model, media, question, &plain), given.generation.process(global));
    media::warn_about_rates([&sample], &model, &process);
    let prepared = model.prepare(&[sample], &process);
    output::answer_one(global, None, &model, prepared, &given.generation, grammar.as_ref(), &cancel)
}
