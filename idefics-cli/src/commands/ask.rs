//! `idefics ask`

use idefics_generate::processor::image::ImageSource;

use crate::args::{AskArgs, Global};
use crate::failure::Failure;
use crate::{commands, model, output};

/// Answers a question about all the images together.
pub(crate) fn run(global: &Global, args: &AskArgs) -> Result<(), Failure> {
    let Some((question, images)) = args.images_and_question.split_last() else {
        return Err(Failure::usage("no question".to_owned()));
    };
    if images.is_empty() && std::path::Path::new(question).is_file() {
        return Err(Failure::usage(format!("{question} is a file: give the question after it, in quotes")));
    }
    let images = images
        .iter()
        .map(|image| image.parse::<ImageSource>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::input(error.to_string()))?;
    commands::check_images(&images)?;
    let model = model::load(global)?;
    commands::warn(global, &model, &args.generation.options());
    let cancel = model::cancel_on_interrupt();
    let plain = format!("Question: {question} Answer:");
    let sample = commands::sample(&model, images, question, &plain);
    let prepared = model.prepare(&[sample], &args.generation.process());
    output::answer_one(global, None, &model, prepared, &args.generation, &cancel)
}
