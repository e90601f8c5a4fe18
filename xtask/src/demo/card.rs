//! Writes the README of the model folder, with a chart of the training.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use idefics_checkpoint::write_atomically;
use plotters::prelude::*;
use serde_json::Value;

use super::eval::Score;
use super::train::{Args, EVAL_SEED};

/// Number of steps to average for one point of the loss curve.
const SMOOTHED: usize = 25;
/// Width and height of the chart, in pixels.
const SIZE: (u32, u32) = (900, 380);
/// Maximum number of characters in a line of the README.
const LINE: usize = 120;

/// A curve of points (number of pictures seen, value).
type Curve = Vec<(f64, f64)>;

/// The contents of `metrics.jsonl` as curves over the number of pictures that the decoder was trained on.
#[derive(Default)]
struct History {
    loss: Curve,
    /// Percentage of exactly right answers, by group of tasks.
    right: BTreeMap<String, Curve>,
    /// Training time of the vision tower and all rounds in seconds, over all sessions of the run.
    seconds: f64,
}

/// Writes `README.md` and `training.svg`.
pub(super) fn write(args: &Args, folder: &Path, scores: &[Score], n_parameters: usize) -> Result<()> {
    let history = History::read(args)?;
    draw(&history, &folder.join("training.svg"))?;
    let text = readme(args, n_parameters, history.seconds / 60.0, scores);
    Ok(write_atomically(&folder.join("README.md"), |file| file.write_all(text.as_bytes()))?)
}

/// Returns the text of `README.md`.
fn readme(args: &Args, n_parameters: usize, minutes: f64, scores: &[Score]) -> String {
    let training = format!(
        "{n_parameters} parameters in bfloat16, trained from scratch by `cargo xtask train-demo` in {minutes:.0} minutes \
         on `{device}`, not counting evaluation: seed {seed}, {tower} steps of the vision tower, {steps} of connector \
         and decoder and {more} in further rounds, {pictures} pictures per step, learning rate {rate}.",
        device = args.device,
        seed = args.seed,
        tower = args.tower_steps,
        steps = args.steps,
        more = args.more_steps.iter().map(u64::to_string).collect::<Vec<_>>().join(" + "),
        pictures = args.pictures_per_step(),
        rate = args.learning_rate,
    );
    let abilities = "The model recognises one to three circles, squares, triangles, stars and crosses in six colours on \
                     plain, gradient and noisy backgrounds, in pictures of 64 to 128 pixels, and answers the questions of \
                     the crate `idefics-demo`. Its answers about anything else, such as photographs, are meaningless.";
    let row = |score: &Score| format!("| {} | {:.1} % | {} |\n", score.task, score.percent(), score.count);
    format!(
        "# A small Idefics2 for drawn shapes\n\n\
         {training}\n\n\
         {abilities}\n\n\
         | task | exact match | scenes |\n|---|---|---|\n{table}\n\
         Measured on scenes that were not used in training, with `cargo xtask eval-demo --seed {EVAL_SEED}`.\n\n\
         ![Loss and accuracy over the number of pictures](training.svg)\n",
        training = wrap(&training),
        abilities = wrap(abilities),
        table = scores.iter().map(row).collect::<String>(),
    )
}

/// Breaks a paragraph into lines of at most [`LINE`] characters.
fn wrap(paragraph: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in paragraph.split(' ') {
        let len = word.chars().count();
        if column + len > LINE {
            lines.push('\n');
            column = 0;
        } else if column > 0 {
            lines.push(' ');
        }
        lines.push_str(word);
        column += len + 1;
    }
    lines
}

impl History {
    fn read(args: &Args) -> Result<Self> {
        let path = &args.out.join("metrics.jsonl");
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut history = Self::default();
        let mut losses = Vec::new();
        // If a killed run repeated a step after its restart, the last result counts.
        let mut steps: BTreeMap<(String, u64), Value> = BTreeMap::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let part = line["part"].as_str().unwrap_or_default().to_owned();
            steps.insert((part, line["step"].as_u64().unwrap_or_default()), line);
        }
        let rounds = args.rounds();
        for ((part, step), line) in &steps {
            history.seconds += line["step_seconds"].as_f64().unwrap_or_default();
            let Some(round) = rounds.iter().find(|round| round.name == *part) else { continue };
            let pictures = ((round.first_step + step + 1) * args.pictures_per_step() as u64) as f64;
            losses.push(line["loss"].as_f64().unwrap_or(f64::NAN));
            if losses.len() == SMOOTHED {
                history.loss.push((pictures, losses.iter().sum::<f64>() / SMOOTHED as f64));
                losses.clear();
            }
            for (task, percent) in line["percent_right"].as_object().into_iter().flatten() {
                let percent = percent.as_f64().unwrap_or(f64::NAN);
                history.right.entry(task.clone()).or_default().push((pictures, percent));
            }
        }
        Ok(history)
    }
}

/// Draws two charts side by side: the loss, and the percentage of right answers of each group of tasks.
fn draw(history: &History, path: &Path) -> Result<()> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw the training chart: {error}");
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        let pictures = history.loss.last().map_or(1.0, |point| point.0);
        let highest = history.loss.iter().map(|point| point.1).fold(0.0, f64::max);
        chart(&left, "loss", pictures, highest.clamp(0.1, 3.0), &[("loss", &history.loss)])
            .map_err(|error| failed(&error))?;
        let curves: Vec<(&str, &Curve)> = history.right.iter().map(|(task, curve)| (task.as_str(), curve)).collect();
        chart(&right, "exact match, %", pictures, 100.0, &curves).map_err(|error| failed(&error))?;
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(write_atomically(path, |file| file.write_all(svg.as_bytes()))?)
}

fn chart<'a, DB: DrawingBackend + 'a>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    title: &str,
    pictures: f64,
    highest: f64,
    curves: &[(&str, &Curve)],
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..pictures, 0.0..highest)?;
    chart.configure_mesh().x_desc("pictures seen").x_labels(5).light_line_style(WHITE).draw()?;
    for (idx, (name, curve)) in curves.iter().enumerate() {
        let colour = Palette99::pick(idx).to_rgba();
        let series = chart.draw_series(LineSeries::new(curve.iter().copied(), colour.stroke_width(2)))?;
        series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    if curves.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use idefics_checkpoint::Checkpoint;

    use super::*;
    use crate::demo::eval::{GROUPS, Group};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    /// The built-in model was trained with the default options. Only its README records the figures of that run, so the
    /// test reads them there.
    #[test]
    fn committed_readme_is_what_a_run_writes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idefics-demo/model");
        let committed = std::fs::read_to_string(folder.join("README.md")).unwrap();
        let n_parameters = Checkpoint::open(&folder).unwrap().tensors().map(|(_, tensor)| tensor.num_elements()).sum();
        let (before, _) = committed.split_once(" minutes").unwrap();
        let minutes = before.rsplit(' ').next().unwrap().parse().unwrap();
        let score = |group: &Group| {
            let row = committed.lines().find(|line| line.starts_with(&format!("| {} |", group.name))).unwrap();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let percent: f64 = cells[2].strip_suffix(" %").unwrap().parse().unwrap();
            let count: usize = cells[3].parse().unwrap();
            Score { task: group.name, right: (percent / 100.0 * count as f64).round() as usize, count }
        };
        let scores = GROUPS.each_ref().map(score);
        let args = Command::parse_from(["train-demo"]).args;
        assert_eq!(readme(&args, n_parameters, minutes, &scores), committed);
    }
}
