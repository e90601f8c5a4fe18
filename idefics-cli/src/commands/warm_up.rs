//! `idefics warm-up`

use std::io::{self, Write};

use idefics_generate::{DeviceKind, GenerationConfig, GraphCapture};
use indicatif::ProgressBar;

use crate::args::{Global, WarmUpArgs};
use crate::failure::Failure;
use crate::media::Media;
use crate::{commands, model};

/// Default number of tokens per answer: the first comes from the prefill, two from decode steps that are launched
/// normally, and one from a replayed step.
const NEW_TOKENS: usize = 4;

/// Whether the chosen kernels are kept for the next run.
const IS_KEPT: bool = cfg!(feature = "persistence");

/// Generates the answers twice and prints both times. The difference is the time for compiling and choosing kernels.
pub(crate) fn run(global: &Global, args: &WarmUpArgs) -> Result<(), Failure> {
    commands::check_images(&args.images)?;
    let model = model::load(global)?;
    let samples: Vec<_> = args
        .images
        .iter()
        .map(|image| commands::sample(&model, vec![Media::Image(image.clone())], "Describe this image.", ""))
        .collect();
    let bar = ProgressBar::new_spinner().with_message("kernels");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let options = args.generation.options();
    let options = GenerationConfig { max_new_tokens: options.max_new_tokens.or(Some(NEW_TOKENS)), ..options };
    let graph_capture = global.lease.as_ref().map_or(GraphCapture::Never, GraphCapture::AtOnce);
    let warm_up = model.warm_up(&samples, &args.generation.process(global), &options, graph_capture);
    bar.finish_and_clear();
    let warm_up = warm_up.map_err(Failure::sample)?;
    let mut stdout = io::stdout().lock();
    if global.json {
        let mut line = serde_json::to_value(warm_up).map_err(io::Error::from)?;
        line["kept"] = IS_KEPT.into();
        return Ok(writeln!(stdout, "{line}")?);
    }
    let [first, second] = [warm_up.first_ms, warm_up.second_ms].map(|milliseconds| milliseconds / 1e3);
    let kept = match IS_KEPT {
        _ if DeviceKind::of(&model.model().device()) == DeviceKind::Cpu => "",
        true => "; the chosen kernels are kept for the next run",
        false => "; the chosen kernels are not kept: this program was built without the feature `persistence`",
    };
    Ok(writeln!(stdout, "first answer {first:.2} s, second {second:.2} s{kept}")?)
}
