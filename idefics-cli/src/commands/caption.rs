//! `idefics caption`

use crate::args::{CaptionArgs, Global};
use crate::failure::Failure;
use crate::media::{self, Media};
use crate::{commands, output, signals};

/// Describes each image or video in turn. If one fails, the others are still described.
pub(crate) fn run(global: &Global, args: &CaptionArgs) -> Result<(), Failure> {
    if let [image] = args.images.as_slice() {
        commands::check_images([image])?;
    }
    let options = args.generation.options();
    let grammar = args.grammar.grammar(&options)?;
    let model = commands::load(global, &options)?;
    let grammar = commands::compile(&model, grammar.as_ref())?;
    let cancel = signals::cancel();
    let several = args.images.len() > 1;
    let mut failures = Vec::new();
    let (process, limits) = (args.generation.process(global), global.image_limits());
    let plain = args.prompt.as_deref().unwrap_or("");
    let samples = args.images.iter().map(|image| {
        let medium = Media::of(image.clone(), &model, &limits);
        let what = if medium.is_video() { "Describe this video." } else { "Describe this image." };
        let sample = commands::sample(&model, vec![medium], args.prompt.as_deref().unwrap_or(what), plain);
        media::warn_about_rates([&sample], &model, &process);
        [sample]
    });
    let mut names = args.images.iter().map(ToString::to_string);
    model.prepare_ahead(samples, &process, |_, prepared| {
        let name = names.next().expect("there is a name for each image");
        let image_name = (several || global.json).then_some(name.as_str());
        let grammar = grammar.as_ref();
        match output::answer_one(global, image_name, &model, prepared, &args.generation, grammar, &cancel) {
            Ok(()) => Ok(()),
            Err(failure) if several && failure.affects_one_input() && !cancel.is_cancelled() => {
                failure.warn();
                if global.json {
                    output::print_refused(&name, &failure)?;
                }
                failures.push(failure);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    })?;
    match failures.len() {
        0 => Ok(()),
        failed => Err(Failure::some_failed(failed, args.images.len())),
    }
}
