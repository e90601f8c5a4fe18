//! The generation stages, which start from the raw samples.

use anyhow::{Context, Result};
use burn::tensor::DType;
use idefics_generate::nn::supports_graph_capture;
use idefics_generate::processor::image::ImageTile;
use idefics_generate::processor::{ProcessedInputs, Processor, Tokenizer};
use idefics_generate::{
    Controls, DeviceChoice, DeviceLease, Generation, GenerationConfig, GraphCapture, ImageVectors, Model, ModelConfig,
    Prompts, load_model,
};

use super::case::Case;
use super::compare::Comparison;
use super::margins::{Ties, margin};
use super::stages::{Stages, process_options};

impl Stages<'_> {
    /// Compares every run under `generate` in `case.json`: sequences, sequence scores, the filtered scores before
    /// sampling, and texts.
    pub(super) fn generation(
        &mut self,
        model: &dyn Model,
        processor: &Processor,
        processed: &ProcessedInputs,
    ) -> Result<()> {
        if self.case.file.generate.is_empty() {
            return Ok(());
        }
        let folder_options = GenerationConfig::from_folder(&self.case.checkpoint)?;
        let tokenizer = processor.tokenizer_for(process_options(self.case).compatibility);
        let prompts = Prompts::pad_left(&processed.input_ids, tokenizer.pad_token_id_or_fallback())?;
        let config = ModelConfig::from_folder(&self.case.checkpoint)?;
        let prompts = config.family().see_images(prompts, tokenizer);
        let images: Vec<ImageTile> = processed.images.iter().flatten().cloned().collect();
        let image_hidden_states = model.encode_images(&images)?;
        // The tests of this crate run in several threads, but on the CPU, where they get no lease.
        let lease = supports_graph_capture(&model.device()).then(|| {
            #[allow(unsafe_code, reason = "the caller must guarantee how the program's threads use the device")]
            // SAFETY: `cargo xtask verify` is the only user of devices that support graph capture, and it uses them
            // on its main thread only.
            unsafe {
                DeviceLease::for_this_thread()
            }
        });
        let lease = lease.as_ref();
        for (name, options) in &self.case.file.generate {
            let options = &options.over(&folder_options);
            let run = Run { name, options, prompts: &prompts, images: &images, tokenizer, lease };
            match run.start(model, image_hidden_states.clone(), Controls::default()) {
                Err(error @ idefics_generate::Error::Generation(_)) => {
                    self.report.stage(&format!("generate.{name}"), &Comparison::failed(error.to_string()));
                }
                started => self.run(&run, started?)?,
            }
        }
        Ok(())
    }

    fn run(&mut self, run: &Run<'_>, mut generation: Generation<'_>) -> Result<()> {
        let name = run.name;
        let stage = format!("generate.{name}.filtered_scores");
        if self.case.expected(&stage).is_some() {
            let scores = generation.first_scores()?.context("the scores of this run are not available on the host")?;
            let shape = [scores.len(), scores[0].len()];
            self.filtered(&stage, &shape, &scores.concat())?;
        }
        while generation.step()?.is_some() {}
        if let Some(reason) = generation.replay_refusal() {
            eprintln!("{name}: no decode step was replayed: {reason}");
        }

        let is_same = self.sequences(run, &generation)?;
        let stage = format!("generate.{name}.sequences_scores");
        if let Some(expected) = self.case.expected(&stage) {
            let tolerance = self.model_tolerance(&stage, expected.floats()?);
            match generation.sequences_scores() {
                Some(scores) => self.floats(&stage, &[scores.len()], scores, tolerance, |_| true)?,
                None => {
                    let reason = "only beam search computes sequence scores".to_owned();
                    self.report.stage(&stage, &Comparison::failed(reason));
                }
            }
        }
        if let Some(expected) = self.case.file.texts.get(name) {
            let decode = |row: &Vec<u32>| run.tokenizer.decode(row, true);
            let texts = generation.sequences().iter().map(decode).collect::<Result<Vec<_>, _>>()?;
            self.report.stage(&format!("text.{name}"), &compare_texts(&texts, expected, &is_same));
        }
        Ok(())
    }

    /// Compares the sequences of a run. Returns for each sequence whether its text must equal that of the reference.
    ///
    /// In f32, all sequences must be equal. In 16-bit floats, a sequence may differ after a tie: a position where the
    /// scores of the two best tokens are equal within the error of 16-bit floats. Beams that have scores may differ
    /// anywhere, because their scores are compared instead.
    fn sequences(&mut self, run: &Run<'_>, generation: &Generation<'_>) -> Result<Vec<bool>> {
        let stage = format!("generate.{}.sequences", run.name);
        let sequences = generation.sequences();
        let ids: Vec<i64> = sequences.iter().flatten().map(|&id| i64::from(id)).collect();
        let shape = [sequences.len(), sequences[0].len()];
        let Some(expected) = self.case.expected(&stage) else { return Ok(vec![true; sequences.len()]) };
        let &[n_rows, n_slots] = expected.shape.as_slice() else {
            self.report.stage(&stage, &Comparison::shape(&shape, &expected.shape));
            return Ok(vec![true; sequences.len()]);
        };
        let expected = expected.ints()?;
        if !self.is_16_bit() || ids == expected || n_rows != sequences.len() {
            self.ints(&stage, &shape, &ids)?;
            return Ok(vec![true; sequences.len()]);
        }

        let rows = || sequences.iter().zip(expected.chunks_exact(n_slots));
        let first_difference = |(ours, expected): (&Vec<u32>, &[i64])| {
            let is_other = |(ours, expected): (&u32, &i64)| i64::from(*ours) != *expected;
            let among_both = ours.iter().zip(expected).position(is_other);
            among_both.or((ours.len() != n_slots).then(|| ours.len().min(n_slots)))
        };
        let differences: Vec<Option<usize>> = rows().map(first_difference).collect();
        let scores_stage = format!("generate.{}.sequences_scores", run.name);
        let has_scores = generation.sequences_scores().is_some() && self.case.expected(&scores_stage).is_some();
        let excused: Vec<bool> = if has_scores {
            differences.iter().map(Option::is_some).collect()
        } else {
            let ties = run.ties(self.case)?;
            let is_tie = |(row, slot): (usize, &Option<usize>)| {
                let n_generated = slot.and_then(|slot| slot.checked_sub(run.prompts.seq()));
                n_generated.is_some_and(|n_generated| ties.has(row / generation.answers_per_sample(), n_generated))
            };
            differences.iter().enumerate().map(is_tie).collect()
        };
        let wrong = differences.iter().zip(&excused).position(|(slot, is_excused)| slot.is_some() && !is_excused);
        let equal: usize = rows()
            .map(|(ours, expected)| ours.iter().zip(expected).filter(|(a, b)| i64::from(**a) == **b).count())
            .sum();
        let n_wrong = differences.iter().zip(&excused).filter(|(slot, is_excused)| slot.is_some() && !**is_excused);
        let comparison = Comparison {
            shape: shape.to_vec(),
            max: n_wrong.count() as f64,
            mean: 1.0 - equal as f64 / expected.len() as f64,
            tolerance: 0.0,
            remark: wrong.map(|row| format!("row {row} differs at a position without a tie")),
            note: Some(format!(
                "{equal} of {} tokens equal the reference; {} of {n_rows} rows {}",
                expected.len(),
                excused.iter().filter(|is_excused| **is_excused).count(),
                if has_scores { "are different beams, whose scores are compared" } else { "differ after a tie" },
            )),
        };
        self.report.stage(&stage, &comparison);
        Ok(excused.into_iter().map(|is_excused| !is_excused).collect())
    }

    /// Compares filtered scores. The same elements must be -inf. In 16-bit floats, elements near the threshold may
    /// differ.
    fn filtered(&mut self, stage: &str, shape: &[usize], ours: &[f32]) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let values = expected.floats()?;
        let is_forbidden = |score: &f32| *score == f32::NEG_INFINITY;
        let differing =
            ours.iter().zip(values).position(|(ours, expected)| is_forbidden(ours) != is_forbidden(expected));
        let comparison = match differing {
            Some(_) if self.is_16_bit() && shape == expected.shape => filtered_16_bits(shape, ours, values),
            _ if shape != expected.shape => Comparison::shape(shape, &expected.shape),
            Some(index) => {
                Comparison::failed(format!("element {index} is {}; expected {}", ours[index], values[index]))
            }
            None => {
                let kept: Vec<f32> = values.iter().copied().filter(|score| !is_forbidden(score)).collect();
                let tolerance = self.model_tolerance(stage, &kept);
                Comparison::floats(shape, ours, values, tolerance, |index| !is_forbidden(&ours[index]))
            }
        };
        self.report.stage(stage, &comparison);
        Ok(())
    }
}

/// The inputs of a run.
struct Run<'r> {
    name: &'r str,
    options: &'r GenerationConfig,
    prompts: &'r Prompts,
    images: &'r [ImageTile],
    tokenizer: &'r Tokenizer,
    /// The right to capture steps; `None` on devices that do not support it.
    lease: Option<&'r DeviceLease>,
}

impl<'r> Run<'r> {
    fn start<'m>(
        &self,
        model: &'m dyn Model,
        image_hidden_states: Option<ImageVectors>,
        controls: Controls<'r>,
    ) -> Result<Generation<'m>, idefics_generate::Error>
    where
        'r: 'm,
    {
        let graph_capture = self.lease.map_or(GraphCapture::Never, GraphCapture::AtOnce);
        let controls = Controls { tokenizer: Some(self.tokenizer), graph_capture, ..controls };
        Generation::start(model, self.prompts, image_hidden_states, self.options, controls)
    }

    /// Finds the ties of the run. Repeats it in f32 on the CPU, where it reproduces the reference.
    fn ties(&self, case: &Case) -> Result<Ties> {
        let (_, device) = DeviceChoice::Cpu.open()?;
        let model = load_model(&case.checkpoint, &device, case.weights(DType::F32)?, |_| ())?;
        let model: &dyn Model = &*model;
        let ties = Ties::default();
        let controls = Controls { processors: vec![Box::new(ties.clone())], ..Controls::default() };
        let mut generation = self.start(model, model.encode_images(self.images)?, controls)?;
        while generation.step()?.is_some() {}
        Ok(ties)
    }
}

/// Compares filtered scores in 16-bit floats. An element may be -inf on one side and a number on the other, if that
/// number is close to the lowest or highest score that the reference kept.
fn filtered_16_bits(shape: &[usize], ours: &[f32], expected: &[f32]) -> Comparison {
    let margin = margin(expected);
    let kept = || expected.iter().copied().filter(|score| score.is_finite()).map(f64::from);
    let borders = [kept().fold(f64::INFINITY, f64::min), kept().fold(f64::NEG_INFINITY, f64::max)];
    let is_forbidden = |score: f32| score == f32::NEG_INFINITY;
    let off = |(&ours, &expected): (&f32, &f32)| match (is_forbidden(ours), is_forbidden(expected)) {
        (true, true) => 0.0,
        (false, false) => f64::from((ours - expected).abs()),
        (is_ours, _) => {
            let score = f64::from(if is_ours { expected } else { ours });
            let [lowest, highest] = borders.map(|border| (score - border).abs());
            if highest < lowest { highest } else { lowest } // unlike `f64::min`, keeps NaN
        }
    };
    let larger = |all: f64, one: f64| if all.is_nan() || one <= all { all } else { one };
    let max = ours.iter().zip(expected).map(off).fold(0.0, larger);
    Comparison { shape: shape.to_vec(), ..Comparison::number(max, margin) }
}

/// Compares the texts of the rows for which `is_same` is true.
fn compare_texts(texts: &[String], expected: &[String], is_same: &[bool]) -> Comparison {
    let rows = || texts.iter().zip(expected).zip(is_same).filter(|(_, is_same)| **is_same).map(|(row, _)| row);
    let differing = rows().filter(|(ours, expected)| ours != expected).count() + texts.len().abs_diff(expected.len());
    let different = rows().find(|(ours, expected)| ours != expected);
    Comparison {
        shape: vec![expected.len()],
        max: differing as f64,
        mean: differing as f64 / expected.len().max(1) as f64,
        tolerance: 0.0,
        remark: different.map(|(ours, expected)| format!("{ours:?}; expected {expected:?}")),
        note: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bit_filters_may_differ_only_near_the_threshold() {
        const OUT: f32 = f32::NEG_INFINITY;
        let expected = [3.0, 1.0, OUT, OUT];
        let passes = |ours: [f32; 4]| filtered_16_bits(&[1, 4], &ours, &expected).passed();
        assert!(passes([3.01, 1.0, OUT, OUT]) && passes([3.0, OUT, OUT, OUT]) && passes([3.0, 1.0, 0.99, OUT]));
        assert!(!passes([3.5, 1.0, OUT, OUT]) && !passes([3.0, 1.0, 0.5, OUT]) && !passes([OUT, 1.0, OUT, 2.0]));
        for place in 0..4 {
            let mut ours = expected;
            ours[place] = f32::NAN;
            assert!(!passes(ours), "NaN at {place}");
        }
    }
}
