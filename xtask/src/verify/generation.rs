//! Generation, from the raw samples through everything.

use anyhow::{Context, Result};
use idefics_generate::processor::image::ImageTile;
use idefics_generate::processor::{Family, ProcessedInputs, Processor, Tokenizer};
use idefics_generate::{Controls, Generation, GenerationConfig, Model, Prompts};

use super::compare::Comparison;
use super::stages::{Stages, process_options};

impl Stages<'_> {
    /// Every run that `generate` in `case.json` names: sequences, their scores, filtered scores before a draw, texts.
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
        let prompts = match processor.family() {
            Family::Idefics1 => prompts.seeing_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id()),
            Family::Idefics2 => prompts,
        };
        let images: Vec<ImageTile> = processed.images.iter().flatten().cloned().collect();
        let image_hidden_states = model.encode_images(&images)?;
        for (name, options) in &self.case.file.generate {
            let options = options.over(&folder_options);
            let controls = Controls { tokenizer: Some(tokenizer), ..Controls::default() };
            let started = Generation::start(model, &prompts, image_hidden_states.clone(), &options, controls);
            match started {
                Err(error @ idefics_generate::Error::Generation(_)) => {
                    self.report.stage(&format!("generate.{name}"), &Comparison::failed(error.to_string()));
                }
                started => self.run(name, started?, tokenizer)?,
            }
        }
        Ok(())
    }

    fn run(&mut self, name: &str, mut generation: Generation<'_>, tokenizer: &Tokenizer) -> Result<()> {
        let stage = format!("generate.{name}.filtered_scores");
        if self.case.expected(&stage).is_some() {
            let scores = generation.first_scores()?.context("this run has no scores on the host")?;
            let shape = [scores.len(), scores[0].len()];
            self.filtered(&stage, &shape, &scores.concat())?;
        }
        while generation.step()?.is_some() {}

        let sequences = generation.sequences();
        let ids: Vec<i64> = sequences.iter().flatten().map(|&id| i64::from(id)).collect();
        let shape = [sequences.len(), sequences[0].len()];
        self.ints(&format!("generate.{name}.sequences"), &shape, &ids)?;

        let stage = format!("generate.{name}.sequences_scores");
        if let Some(expected) = self.case.expected(&stage) {
            let tolerance = self.model_tolerance(&stage, expected.floats()?);
            match generation.sequences_scores() {
                Some(scores) => self.floats(&stage, &[scores.len()], scores, tolerance, |_| true)?,
                None => {
                    let reason = "only a beam search gives its answers scores".to_owned();
                    self.report.stage(&stage, &Comparison::failed(reason));
                }
            }
        }
        if let Some(expected) = self.case.file.texts.get(name) {
            let texts = sequences.iter().map(|row| tokenizer.decode(row, true)).collect::<Result<Vec<_>, _>>()?;
            self.report.stage(&format!("text.{name}"), &compare_texts(&texts, expected));
        }
        Ok(())
    }

    /// Scores of which some are -inf: the same ones must be.
    fn filtered(&mut self, stage: &str, shape: &[usize], ours: &[f32]) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let values = expected.floats()?;
        let is_forbidden = |score: &f32| *score == f32::NEG_INFINITY;
        let differing =
            ours.iter().zip(values).position(|(ours, expected)| is_forbidden(ours) != is_forbidden(expected));
        let comparison = match differing {
            _ if shape != expected.shape => Comparison::shape(shape, &expected.shape),
            Some(index) => {
                Comparison::failed(format!("element {index} is {}, expected {}", ours[index], values[index]))
            }
            None => {
                let tolerance = self.model_tolerance(stage, &[]);
                Comparison::floats(shape, ours, values, tolerance, |index| !is_forbidden(&ours[index]))
            }
        };
        self.report.stage(stage, &comparison);
        Ok(())
    }
}

fn compare_texts(texts: &[String], expected: &[String]) -> Comparison {
    let differing = texts.iter().zip(expected).filter(|(ours, expected)| ours != expected).count()
        + texts.len().abs_diff(expected.len());
    let different = texts.iter().zip(expected).find(|(ours, expected)| ours != expected);
    Comparison {
        shape: vec![expected.len()],
        max: differing as f64,
        mean: differing as f64 / expected.len().max(1) as f64,
        tolerance: 0.0,
        remark: different.map(|(ours, expected)| format!("{ours:?}, expected {expected:?}")),
    }
}
