//! `idefics classify`

use std::io::{self, Write};

use idefics_generate::processor::Sample;
use serde_json::json;

use crate::args::{ClassifyArgs, Global};
use crate::failure::Failure;
use crate::media::Media;
use crate::{commands, model, output, signals};

/// Asks the model for a label, or ranks all labels. An answer is always one of the labels, because a grammar allows
/// nothing else.
pub(crate) fn run(global: &Global, args: &ClassifyArgs) -> Result<(), Failure> {
    let labels = args.labels()?;
    commands::check_images([&args.image])?;
    let grammar = if args.rank { None } else { Some(args.grammar(&labels)?) };
    // Room for the longest label and an end token; no token is shorter than a byte.
    let n_tokens = labels.iter().map(String::len).max().unwrap_or(0) + 2;
    let generation = args.generation.with_max_new_tokens(n_tokens);
    let model = match args.rank {
        true => model::load(global)?,
        false => commands::load(global, &generation.options())?,
    };
    let cancel = signals::cancel();
    let listed = labels.join(", ");
    let question = args.prompt.clone().unwrap_or_else(|| {
        format!("Classify this image into one of these categories: {listed}. Answer with the category only.")
    });
    let sample = match model.processor().can_chat() {
        true => commands::sample(&model, vec![Media::Image(args.image.clone())], &question, ""),
        false => {
            // Wording from the IDEFICS guide of Transformers.
            let question = args.prompt.clone().unwrap_or_else(|| {
                format!("Classify the following image into a single category from the following list: {listed}.")
            });
            let text = format!("Instruction: {question}\n<image>\nCategory:");
            Sample::Text { text, images: vec![args.image.clone()], videos: Vec::new() }
        }
    };
    if !args.rank {
        let grammar = commands::compile(&model, grammar.as_ref())?;
        let prepared = model.prepare(&[sample], &generation.process(global));
        return output::answer_one(global, None, &model, prepared, &generation, grammar.as_ref(), &cancel);
    }

    for option in args.generation.given() {
        say!("warning: `{option}` has no effect with `--rank`, which generates no text");
    }
    let ranking = model.rank(&sample, &labels, &args.generation.process(global), args.rank_options(), &cancel);
    let ranking = ranking.map_err(Failure::sample)?;
    let mut stdout = io::stdout().lock();
    match global.json {
        true => {
            let text = ranking.labels.first().map(|best| best.label.as_str());
            let line = json!({"text": text, "prompt": ranking.prompt, "labels": ranking.labels,
                "timings": ranking.timings});
            writeln!(stdout, "{line}")?;
        }
        false => {
            for ranked in &ranking.labels {
                writeln!(stdout, "{:.4}  {}", ranked.probability, ranked.label)?;
            }
        }
    }
    Ok(())
}
