//! Runs the stages of a case with the production code and compares the results.
//!
//! Model stages start from the *expected* processor tensors, so that processor and model are compared independently.
//! Generation stages start from the raw samples.

use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::{DType, Device, Tensor};
use idefics_generate::processor::families::TileGrid;
use idefics_generate::processor::{Compatibility, PaddingSide, ProcessOptions, ProcessedInputs, Processor, TokenBatch};
use idefics_generate::{Idefics2, Idefics3};
use idefics_train::Trainable;

use super::case::{AlphaName, Case, Values};
use super::compare::Comparison;
use super::report::Report;

/// Tolerance in bf16, as a fraction of the largest expected value of the stage.
const BF16_SHARE: f64 = 0.1;
/// Tolerance in f16, as a fraction of the largest expected value of the stage.
const F16_SHARE: f64 = 0.02;

/// Compares everything that the case expects.
pub(super) fn compare(case: &Case, device: &Device, dtype: DType, report: &mut Report) -> Result<()> {
    let processor = Processor::from_folder(&case.checkpoint)?;
    let options = process_options(case);
    let processed = processor.process(&case.file.samples, &options)?;
    let mut stages = Stages { case, dtype, report };
    stages.processor(&processor, &processed)?;

    if !case.runs_model() {
        return Ok(());
    }
    let tokens = processed.padded(processor.tokenizer().pad_token_id_or_fallback(), PaddingSide::Left);
    match processor.family().model_type() {
        "idefics" => stages.idefics1(device, &processor, &processed, &tokens),
        "idefics2" => stages.idefics2(device, &processor, &processed, &tokens),
        "idefics3" | "smolvlm" => stages.idefics3(device, &processor, &processed, &tokens),
        family => bail!("family {family} is not supported"),
    }
}

pub(super) fn process_options(case: &Case) -> ProcessOptions {
    let transformers4 = case.file.reference.transformers.as_deref().is_some_and(|version| version.starts_with("4."));
    ProcessOptions {
        do_image_splitting: case.file.processor.do_image_splitting,
        alpha: case.file.processor.alpha.unwrap_or(AlphaName::Drop).into(),
        compatibility: if transformers4 { Compatibility::Transformers4 } else { Compatibility::Transformers5 },
        add_end_of_utterance_token: case.file.processor.add_end_of_utterance_token,
        add_eos_token: case.file.processor.add_eos_token,
        ..ProcessOptions::default()
    }
}

/// The case, precision and report that all stages share.
pub(super) struct Stages<'a> {
    pub(super) case: &'a Case,
    pub(super) dtype: DType,
    pub(super) report: &'a mut Report,
}

impl Stages<'_> {
    fn idefics2(
        &mut self,
        device: &Device,
        processor: &Processor,
        processed: &ProcessedInputs,
        tokens: &TokenBatch,
    ) -> Result<()> {
        let model = Idefics2::from_folder(&self.case.checkpoint, device, self.case.weights(self.dtype)?, |_| ())?;
        let images = self.images(processed)?;
        let image_hidden_states = self.vision(&model, &|batch| model.vision_features(batch), &images)?;
        let (prompts, real) = self.prompts(tokens)?;
        let recipe = self.recipe();
        let n_layers = model.config().text_config.num_hidden_layers;
        let loss = |logits, labels: &[i64]| model.loss(logits, labels, recipe);
        self.decoder(&model, n_layers, (&prompts, &real), image_hidden_states, &loss)?;
        let load = |folder: &Path, device: &Device| Idefics2::from_folder(folder, device, DType::F32, |_| ());
        self.training(device, (&prompts, &images), model.config().tied(), load)?;
        self.generation(&model, processor, processed)
    }

    fn idefics3(
        &mut self,
        device: &Device,
        processor: &Processor,
        processed: &ProcessedInputs,
        tokens: &TokenBatch,
    ) -> Result<()> {
        let model = Idefics3::from_folder(&self.case.checkpoint, device, self.case.weights(self.dtype)?, |_| ())?;
        let images = self.images(processed)?;
        let image_hidden_states = self.vision(&model, &|batch| model.vision_features(batch), &images)?;
        let (prompts, real) = self.prompts(tokens)?;
        let recipe = self.recipe();
        let n_layers = model.config().text_config.num_hidden_layers;
        let loss = |logits, labels: &[i64]| model.loss(logits, labels, recipe);
        self.decoder(&model, n_layers, (&prompts, &real), image_hidden_states, &loss)?;
        let load = |folder: &Path, device: &Device| Idefics3::from_folder(folder, device, DType::F32, |_| ());
        self.training(device, (&prompts, &images), model.config().tied(), load)?;
        self.generation(&model, processor, processed)
    }

    fn processor(&mut self, processor: &Processor, processed: &ProcessedInputs) -> Result<()> {
        let tokens = processed.padded(processor.tokenizer().pad_token_id_or_fallback(), PaddingSide::Left);
        let shape = [tokens.batch, tokens.seq];
        self.ints("processor.input_ids", &shape, &tokens.input_ids)?;
        self.ints("processor.attention_mask", &shape, &tokens.attention_mask)?;
        self.grids(processed)?;
        self.frames(processed)?;
        self.image_attention_mask(processor, processed, &tokens)?;
        let Some(images) = processed.padded_images() else { return self.no_images(&tokens) };
        let tolerance = self.case.tolerance("processor.pixel_values");
        self.floats("processor.pixel_values", &images.pixel_values_shape(), &images.pixel_values, tolerance, |_| true)?;
        self.ints("processor.pixel_attention_mask", &images.pixel_attention_mask_shape(), &images.pixel_attention_mask)
    }

    /// Compares the pixels of samples without images. The case expects none, or one black image per row as in IDEFICS
    /// v1.
    fn no_images(&mut self, tokens: &TokenBatch) -> Result<()> {
        let Some(expected) = self.case.expected("processor.pixel_values") else { return Ok(()) };
        let shape = [&[tokens.batch, 1][..], expected.shape.get(2..).unwrap_or_default()].concat();
        let black = vec![0.0; shape.iter().product()];
        self.floats("processor.pixel_values", &shape, &black, 0.0, |_| true)
    }

    /// Compares the numbers of tile rows and of tile columns of each picture, both `[batch, pictures]`, with -1 where a
    /// row of the batch has fewer pictures.
    fn grids(&mut self, processed: &ProcessedInputs) -> Result<()> {
        let pictures = processed.grids.iter().map(Vec::len).max().unwrap_or(0);
        let shape = [processed.grids.len(), pictures];
        let sides = |side: fn(&TileGrid) -> usize| -> Vec<i64> {
            let row = |grids: &Vec<TileGrid>| {
                let sides: Vec<i64> = grids.iter().map(|grid| side(grid) as i64).collect();
                let missing = pictures - sides.len();
                sides.into_iter().chain(std::iter::repeat_n(-1, missing))
            };
            processed.grids.iter().flat_map(row).collect()
        };
        self.ints("processor.rows", &shape, &sides(|grid| grid.rows))?;
        self.ints("processor.cols", &shape, &sides(|grid| grid.cols))
    }

    /// Compares the indices of the shown frames of each video, `[videos, frames]`, with -1 where a video has fewer
    /// frames.
    fn frames(&mut self, processed: &ProcessedInputs) -> Result<()> {
        let videos: Vec<&[usize]> =
            processed.videos.iter().flatten().map(|video| video.frames_indices.as_slice()).collect();
        let frames = videos.iter().map(|video| video.len()).max().unwrap_or(0);
        let row = |video: &&[usize]| {
            let missing = std::iter::repeat_n(-1, frames - video.len());
            video.iter().map(|&index| index as i64).chain(missing).collect::<Vec<i64>>()
        };
        let indices: Vec<i64> = videos.iter().flat_map(row).collect();
        self.ints("processor.frames_indices", &[videos.len(), frames], &indices)
    }

    pub(super) fn tensor<const D: usize>(
        &mut self,
        stage: &str,
        ours: &Tensor<D>,
        compared: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let tolerance = self.model_tolerance(stage, expected.floats()?);
        self.floats(stage, &ours.dims(), &floats(ours.clone()), tolerance, compared)
    }

    pub(super) fn floats(
        &mut self,
        stage: &str,
        shape: &[usize],
        ours: &[f32],
        tolerance: f64,
        compared: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let comparison = match shape == expected.shape {
            true => Comparison::floats(shape, ours, expected.floats()?, tolerance, compared),
            false => Comparison::shape(shape, &expected.shape),
        };
        self.report.stage(stage, &comparison);
        Ok(())
    }

    pub(super) fn ints(&mut self, stage: &str, shape: &[usize], ours: &[i64]) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let comparison = match (shape == expected.shape, &expected.values) {
            (true, Values::Int(expected)) => Comparison::ints(shape, ours, expected),
            (true, Values::Float(_)) => Comparison::failed("the case has floats; expected integers (I64)".to_owned()),
            (false, _) => Comparison::shape(shape, &expected.shape),
        };
        self.report.stage(stage, &comparison);
        Ok(())
    }

    /// Whether the model computes in 16-bit floats, so that tokens may differ from the reference at ties.
    pub(super) fn is_16_bit(&self) -> bool {
        matches!(self.dtype, DType::BF16 | DType::F16)
    }

    /// Returns the tolerance of a stage in the model's precision: that of the case in f32, and in 16-bit floats at
    /// least a fraction of the largest value.
    pub(super) fn model_tolerance(&self, stage: &str, expected: &[f32]) -> f64 {
        let largest = || expected.iter().fold(0.0f64, |largest, &value| largest.max(f64::from(value.abs())));
        let tolerance = self.case.tolerance(stage);
        match self.dtype {
            DType::BF16 => tolerance.max(BF16_SHARE * largest()),
            DType::F16 => tolerance.max(F16_SHARE * largest()),
            _ => tolerance,
        }
    }
}

/// Reads a tensor back as f32.
pub(super) fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.cast(DType::F32).into_data();
    data.try_into_vec().expect("the tensor was cast to f32")
}
