//! `idefics ask`

use std::path::Path;

use crate::args::{self, AskArgs, Global};
use crate::failure::Failure;
use crate::{commands, model, output, signals};

/// Answers a question about all the images together.
pub(crate) fn run(global: &Global, given: &AskArgs) -> Result<(), Failure> {
    let Some((question, images)) = given.images_and_question.split_last() else {
        return Err(Failure::usage("no question given".to_owned()));
    };
    if images.is_empty() && Path::new(question).is_file() {
        let name = question.display();
        return Err(Failure::usage(format!("{name} is a file; give the question after it, in quotes")));
    }
    let Some(question) = question.to_str() else {
        let question = question.display();
        return Err(Failure::usage(format!("the last argument must be the question, but {question} is not UTF-8")));
    };
    let images = images.iter().cloned().map(args::image).collect::<Result<Vec<_>, _>>();
    let images = images.map_err(|error| Failure::input(error.to_string()))?;
    commands::check_images(&images)?;
    let model = model::load(global)?;
    commands::warn(global, &model, &given.generation.options());
    let cancel = signals::cancel();
    let plain = format!("Question: {question} Answer:");
    let sample = commands::sample(&model, images, question, &plain);
    let prepared = model.prepare(&[sample], &given.generation.process(global));
    output::answer_one(global, None, &model, prepared, &given.generation, &cancel)
}
