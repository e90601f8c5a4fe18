//! The stages of an Idefics2 case, each through the code that users run.
//!
//! Model stages start from the *expected* processor tensors, so that a difference in the processor does not hide one in
//! the model; generation goes from the raw sample through everything.

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use idefics_generate::models::idefics2::{LabelRecipe, LogitsToKeep};
use idefics_generate::processor::image::{ImageTile, PaddedImages};
use idefics_generate::processor::{Compatibility, PaddingSide, ProcessOptions, ProcessedInputs, Processor, TokenBatch};
use idefics_generate::text::DecoderObserver;
use idefics_generate::{CancelToken, Generation, GenerationConfig, Idefics2, Prompts, image_batches};

use super::case::{AlphaName, Case, Expected, Values};
use super::compare::Comparison;
use super::report::Report;

/// In 16-bit floats a stage may be off by this share of its largest expected value.
const BF16_SHARE: f64 = 0.1;
const F16_SHARE: f64 = 0.02;

/// Compares everything that the case expects.
pub(super) fn compare(case: &Case, device: &Device, dtype: DType, report: &mut Report) -> Result<()> {
    check_names(case)?;
    let processor = Processor::from_folder(&case.checkpoint)?;
    let options = process_options(case);
    let processed = processor.process(&case.file.samples, &options)?;
    let mut stages = Stages { case, dtype, report };
    stages.processor(&processor, &processed)?;

    let runs_model = case.expected.keys().any(|name| !name.starts_with("processor."));
    if !runs_model && case.file.generate.is_empty() {
        return Ok(());
    }
    let model = Idefics2::from_folder(&case.checkpoint, device, dtype, |_| ())?;
    let images = stages.images(&processed)?;
    let image_hidden_states = stages.vision(&model, &images)?;
    let tokens = processed.padded(processor.tokenizer().pad_token_id_or_fallback(), PaddingSide::Left);
    stages.decoder(&model, &tokens, image_hidden_states)?;
    stages.generation(&model, &processor, &processed)
}

/// Every expected tensor must be one that is compared.
fn check_names(case: &Case) -> Result<()> {
    const NAMES: [&str; 9] = [
        "processor.input_ids",
        "processor.attention_mask",
        "processor.pixel_values",
        "processor.pixel_attention_mask",
        "vision.last_hidden_state",
        "image_hidden_states",
        "logits",
        "labels",
        "loss",
    ];
    for name in case.expected.keys() {
        let indexed = ["hidden_states.", "attentions."]
            .iter()
            .any(|prefix| name.strip_prefix(prefix).is_some_and(|index| index.parse::<usize>().is_ok()));
        let generated = name
            .strip_prefix("generate.")
            .and_then(|rest| rest.strip_suffix(".sequences").or_else(|| rest.strip_suffix(".sequences_scores")));
        let known_run = generated.is_some_and(|run| case.file.generate.contains_key(run));
        ensure!(
            indexed || known_run || NAMES.contains(&name.as_str()),
            "expected.safetensors: tensor `{name}` is no stage that is compared, or names a run that case.json lacks"
        );
    }
    let unknown = case.file.texts.keys().find(|run| !case.file.generate.contains_key(*run));
    ensure!(unknown.is_none(), "case.json: `texts` names a run that `generate` lacks: {unknown:?}");
    ensure!(
        case.expected("labels").is_some() == case.expected("loss").is_some(),
        "expected.safetensors: `labels` and `loss` go together"
    );
    Ok(())
}

fn process_options(case: &Case) -> ProcessOptions {
    let transformers4 = case.file.reference.transformers.as_deref().is_some_and(|version| version.starts_with("4."));
    ProcessOptions {
        do_image_splitting: case.file.processor.do_image_splitting,
        alpha: case.file.processor.alpha.unwrap_or(AlphaName::Drop).into(),
        compatibility: if transformers4 { Compatibility::Transformers4 } else { Compatibility::Transformers5 },
        ..ProcessOptions::default()
    }
}

struct Stages<'a> {
    case: &'a Case,
    dtype: DType,
    report: &'a mut Report,
}

impl Stages<'_> {
    fn processor(&mut self, processor: &Processor, processed: &ProcessedInputs) -> Result<()> {
        let tokens = processed.padded(processor.tokenizer().pad_token_id_or_fallback(), PaddingSide::Left);
        let shape = [tokens.batch, tokens.seq];
        self.ints("processor.input_ids", &shape, &tokens.input_ids)?;
        self.ints("processor.attention_mask", &shape, &tokens.attention_mask)?;
        let Some(images) = processed.padded_images()? else {
            for stage in ["processor.pixel_values", "processor.pixel_attention_mask"] {
                if self.case.expected(stage).is_some() {
                    self.report.stage(stage, &Comparison::failed("no image in the samples".to_owned()));
                }
            }
            return Ok(());
        };
        let tolerance = self.case.tolerance("processor.pixel_values");
        self.floats("processor.pixel_values", &images.pixel_values_shape(), &images.pixel_values, tolerance, |_| true)?;
        self.ints("processor.pixel_attention_mask", &images.pixel_attention_mask_shape(), &images.pixel_attention_mask)
    }

    /// The real images of the expected processor tensors, or of ours where the case has none.
    fn images(&self, processed: &ProcessedInputs) -> Result<Vec<ImageTile>> {
        let Some(pixel_values) = self.case.expected("processor.pixel_values") else {
            return Ok(processed.images.iter().flatten().cloned().collect());
        };
        let &[batch, n_images, 3, height, width] = pixel_values.shape.as_slice() else {
            bail!("`processor.pixel_values` has shape {:?}, expected [batch, n_images, 3, h, w]", pixel_values.shape);
        };
        let pixel_attention_mask = match self.case.expected("processor.pixel_attention_mask") {
            Some(mask) => {
                ensure!(mask.shape == [batch, n_images, height, width], "`processor.pixel_attention_mask`: shape");
                mask.ints()?.to_vec()
            }
            None => vec![1; batch * n_images * height * width],
        };
        let pixel_values = pixel_values.floats()?.to_vec();
        let images = PaddedImages { batch, n_images, height, width, pixel_values, pixel_attention_mask };
        Ok(images.tiles()?.into_iter().flatten().collect())
    }

    fn vision(&mut self, model: &Idefics2, images: &[ImageTile]) -> Result<Option<Tensor<3>>> {
        let batches = image_batches(images, &model.config().vision_config)?;
        let features: Vec<Tensor<3>> = batches.iter().map(|batch| model.vision_features(batch)).collect();
        if let Some(expected) = self.case.expected("vision.last_hidden_state") {
            let comparison = self.compare_features(model, &batches, &features, expected)?;
            self.report.stage("vision.last_hidden_state", &comparison);
        }
        let image_hidden_states = model.connect(&batches, features);
        match &image_hidden_states {
            Some(states) => self.tensor("image_hidden_states", states, |_| true)?,
            None => {
                ensure!(self.case.expected("image_hidden_states").is_none(), "`image_hidden_states` without an image");
            }
        }
        Ok(image_hidden_states)
    }

    /// The reference encodes all images on one padded grid; ours hold real patches only.
    fn compare_features(
        &self,
        model: &Idefics2,
        batches: &[idefics_generate::ImageBatch],
        features: &[Tensor<3>],
        expected: &Expected,
    ) -> Result<Comparison> {
        let &[n_images, n_patches, hidden] = expected.shape.as_slice() else {
            bail!("`vision.last_hidden_state` has shape {:?}, expected [images, patches, hidden]", expected.shape);
        };
        let n_ours: usize = batches.iter().map(|batch| batch.image_indices.len()).sum();
        let grid_width = match self.case.expected("processor.pixel_values") {
            Some(pixel_values) => pixel_values.shape[4] / model.config().vision_config.patch_size,
            None => batches.iter().map(|batch| batch.layout.shared().cols).max().unwrap_or(0),
        };
        let mut ours = vec![0.0; n_images * n_patches * hidden];
        let mut real = vec![false; n_images * n_patches];
        for (batch, features) in batches.iter().zip(features) {
            let grid = batch.layout.shared();
            let [_, patches, width] = features.dims();
            let last_patch = (grid.rows - 1) * grid_width + grid.cols;
            if n_ours != n_images || width != hidden || last_patch > n_patches {
                return Ok(Comparison::shape(&[n_ours, patches, width], &expected.shape));
            }
            let values = floats(features.clone());
            for (in_batch, &image_idx) in batch.image_indices.iter().enumerate() {
                for patch in 0..patches {
                    let slot = image_idx * n_patches + patch / grid.cols * grid_width + patch % grid.cols;
                    let from = (in_batch * patches + patch) * hidden;
                    ours[slot * hidden..(slot + 1) * hidden].copy_from_slice(&values[from..from + hidden]);
                    real[slot] = true;
                }
            }
        }
        let expected_values = expected.floats()?;
        let tolerance = self.model_tolerance("vision.last_hidden_state", expected_values);
        Ok(Comparison::floats(&expected.shape, &ours, expected_values, tolerance, |index| real[index / hidden]))
    }

    /// The expected ids or mask, or ours where the case has none.
    fn ids_or_ours(&self, name: &str, shape: [usize; 2], ours: &[i64]) -> Result<([usize; 2], Vec<i64>)> {
        match self.case.expected(name) {
            None => {
                ensure!(ours.len() == shape[0] * shape[1], "`{name}` is needed: ours has another shape");
                Ok((shape, ours.to_vec()))
            }
            Some(expected) => {
                let &[batch, seq] = expected.shape.as_slice() else {
                    bail!("`{name}` has shape {:?}, expected [batch, seq]", expected.shape);
                };
                Ok(([batch, seq], expected.ints()?.to_vec()))
            }
        }
    }

    fn decoder(&mut self, model: &Idefics2, tokens: &TokenBatch, image_hidden_states: Option<Tensor<3>>) -> Result<()> {
        let wanted = |name: &String| {
            ["hidden_states.", "attentions."].iter().any(|prefix| name.starts_with(prefix))
                || ["logits", "loss"].contains(&name.as_str())
        };
        if !self.case.expected.keys().any(wanted) {
            return Ok(());
        }
        let (shape, ids) = self.ids_or_ours("processor.input_ids", [tokens.batch, tokens.seq], &tokens.input_ids)?;
        let (mask_shape, mask) = self.ids_or_ours("processor.attention_mask", shape, &tokens.attention_mask)?;
        ensure!(mask_shape == shape, "`processor.attention_mask` has shape {mask_shape:?}, the ids {shape:?}");
        let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
        let real: Vec<bool> = mask.iter().map(|&mask| mask != 0).collect();
        let seq = shape[1];
        let prompts = Prompts::from_padded(ids, &real, seq)?;

        let n_layers = model.config().text_config.num_hidden_layers;
        let expects = |kind: &str, index: usize| self.case.expected(&format!("{kind}.{index}")).is_some();
        let mut seen = Seen {
            wanted_hidden_states: (0..=n_layers).map(|index| expects("hidden_states", index)).collect(),
            wanted_attentions: (0..n_layers).map(|index| expects("attentions", index)).collect(),
            ..Seen::default()
        };
        let mut cache = model.cache(&prompts, 0);
        let hidden_states = model.prefill_observed(&prompts, image_hidden_states, &mut cache, &mut seen)?;

        for (index, states) in &seen.hidden_states {
            let width = states.dims()[2];
            self.tensor(&format!("hidden_states.{index}"), states, |flat| real[flat / width])?;
        }
        for (index, weights) in &seen.attentions {
            let [_, heads, _, _] = weights.dims();
            self.tensor(&format!("attentions.{index}"), weights, |flat| {
                let (key, query, row) = (flat % seq, flat / seq % seq, flat / seq / seq / heads);
                real[row * seq + query] && real[row * seq + key]
            })?;
        }
        let compared = seen.hidden_states.len() + seen.attentions.len();
        let expected =
            self.case.expected.keys().filter(|name| name.contains("states.") || name.contains("attentions."));
        ensure!(
            compared == expected.count(),
            "the case expects hidden states or attentions of layers that are not there"
        );

        if self.case.expected("logits").is_none() && self.case.expected("loss").is_none() {
            return Ok(());
        }
        let logits = model.logits(hidden_states, LogitsToKeep::All); // [batch, seq, vocab_size]
        let vocab_size = logits.dims()[2];
        if self.case.expected("logits").is_some() {
            self.tensor("logits", &logits, |flat| real[flat / vocab_size])?;
        }
        if let Some(labels) = self.case.expected("labels") {
            ensure!(labels.shape == shape, "`labels` has shape {:?}, the ids {shape:?}", labels.shape);
            let valid = |&label: &i64| label == -100 || usize::try_from(label).is_ok_and(|label| label < vocab_size);
            ensure!(labels.ints()?.iter().all(valid), "`labels` holds neither -100 nor a token id");
            let logits = self.with_expected_padding(logits, &real)?;
            let loss = floats(model.loss(logits, labels.ints()?, LabelRecipe::Transformers5));
            let expected = self.case.expected("loss").context("`loss` is needed")?.floats()?;
            ensure!(expected.len() == 1, "`loss` has {} values, expected 1", expected.len());
            let tolerance = self.model_tolerance("loss", expected);
            self.report.stage("loss", &Comparison::floats(&[], &loss, expected, tolerance, |_| true));
        }
        Ok(())
    }

    /// Our logits, with the case's own in padded slots.
    ///
    /// The reference's loss counts the prediction of a row's first token, which the last padded slot makes. What a
    /// padded slot computes depends on the attention kernel (eager averages all values, SDPA gives 0), and is compared
    /// nowhere else.
    fn with_expected_padding(&self, logits: Tensor<3>, real: &[bool]) -> Result<Tensor<3>> {
        let Some(expected) = self.case.expected("logits") else { return Ok(logits) };
        let (dims, device) = (logits.dims(), logits.device());
        if expected.shape != dims {
            return Ok(logits);
        }
        let mut values = floats(logits);
        let rows = values.chunks_exact_mut(dims[2]).zip(expected.floats()?.chunks_exact(dims[2])).zip(real);
        for ((ours, expected), _) in rows.filter(|(_, real)| !**real) {
            ours.copy_from_slice(expected);
        }
        Ok(Tensor::from_data(TensorData::new(values, dims), (&device, DType::F32)))
    }

    fn generation(&mut self, model: &Idefics2, processor: &Processor, processed: &ProcessedInputs) -> Result<()> {
        let folder_options = GenerationConfig::from_folder(&self.case.checkpoint)?;
        let tokenizer = processor.tokenizer_for(process_options(self.case).compatibility);
        if self.case.file.generate.is_empty() {
            return Ok(());
        }
        let prompts = Prompts::pad_left(&processed.input_ids, tokenizer.pad_token_id_or_fallback())?;
        let images: Vec<ImageTile> = processed.images.iter().flatten().cloned().collect();
        let image_hidden_states = model.encode_images(&images)?;
        for (name, options) in &self.case.file.generate {
            let options = options.over(&folder_options);
            let cancel = CancelToken::default();
            let started = Generation::start(model, &prompts, image_hidden_states.clone(), &options, cancel);
            let mut generation = match started {
                Err(error @ idefics_generate::Error::Generation(_)) => {
                    self.report.stage(&format!("generate.{name}"), &Comparison::failed(error.to_string()));
                    continue;
                }
                started => started?,
            };
            while generation.step()?.is_some() {}

            let sequences = generation.sequences();
            let ids: Vec<i64> = sequences.iter().flatten().map(|&id| i64::from(id)).collect();
            let shape = [sequences.len(), sequences[0].len()];
            self.ints(&format!("generate.{name}.sequences"), &shape, &ids)?;

            if let Some(expected) = self.case.file.texts.get(name) {
                let texts = sequences.iter().map(|row| tokenizer.decode(row, true)).collect::<Result<Vec<_>, _>>()?;
                let differing = texts.iter().zip(expected).filter(|(ours, expected)| ours != expected).count()
                    + texts.len().abs_diff(expected.len());
                let different = texts.iter().zip(expected).find(|(ours, expected)| ours != expected);
                let comparison = Comparison {
                    shape: vec![expected.len()],
                    max: differing as f64,
                    mean: differing as f64 / expected.len().max(1) as f64,
                    tolerance: 0.0,
                    remark: different.map(|(ours, expected)| format!("{ours:?}, expected {expected:?}")),
                };
                self.report.stage(&format!("text.{name}"), &comparison);
            }
        }
        Ok(())
    }

    fn tensor<const D: usize>(
        &mut self,
        stage: &str,
        ours: &Tensor<D>,
        compared: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let tolerance = self.model_tolerance(stage, expected.floats()?);
        self.floats(stage, &ours.dims(), &floats(ours.clone()), tolerance, compared)
    }

    fn floats(
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

    fn ints(&mut self, stage: &str, shape: &[usize], ours: &[i64]) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let comparison = match (shape == expected.shape, &expected.values) {
            (true, Values::Int(expected)) => Comparison::ints(shape, ours, expected),
            (true, Values::Float(_)) => Comparison::failed("the case has floats here, expected I64".to_owned()),
            (false, _) => Comparison::shape(shape, &expected.shape),
        };
        self.report.stage(stage, &comparison);
        Ok(())
    }

    /// The case's tolerance, which is for f32, or a share of the largest value in 16-bit floats.
    fn model_tolerance(&self, stage: &str, expected: &[f32]) -> f64 {
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
fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.cast(DType::F32).into_data();
    data.try_into_vec().expect("the tensor was cast to f32")
}

/// Keeps the decoder's insides that the case expects.
#[derive(Default)]
struct Seen {
    wanted_hidden_states: Vec<bool>,
    wanted_attentions: Vec<bool>,
    hidden_states: Vec<(usize, Tensor<3>)>,
    attentions: Vec<(usize, Tensor<4>)>,
}

impl DecoderObserver for Seen {
    fn hidden_states(&mut self, index: usize, hidden_states: &Tensor<3>) {
        if self.wanted_hidden_states[index] {
            self.hidden_states.push((index, hidden_states.clone()));
        }
    }

    fn attentions(&mut self, layer_idx: usize, weights: &dyn Fn() -> Tensor<4>) {
        if self.wanted_attentions[layer_idx] {
            self.attentions.push((layer_idx, weights()));
        }
    }
}
