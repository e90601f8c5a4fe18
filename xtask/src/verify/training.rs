//! The training stages: gradients, and the first steps of a training run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use idefics_generate::processor::image::ImageTile;
use idefics_generate::{Error, Prompts};
use idefics_train::{
    AdamWConfig, LabelRecipe, LossGradients, Schedule, Trainable, Trainer, TrainingBatch, TrainingConfig, WeightDecay,
};
use serde::Deserialize;

use super::compare::Comparison;
use super::stages::{Stages, floats};

/// The settings of the training run, `train` in `case.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TrainSettings {
    optimizer: Optimizer,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_grad_norm: Option<f64>,
    schedule: Schedule,
    warmup_steps: u64,
    steps: u64,
    labels: Labels,
    #[serde(default)]
    frozen: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Optimizer {
    Adamw,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Labels {
    Transformers5,
    IgnoreImageTokens,
}

impl TrainSettings {
    /// Returns the rule that decides which labels count. The labels in the case follow the same rule.
    fn recipe(&self) -> LabelRecipe {
        match self.labels {
            Labels::Transformers5 => LabelRecipe::Transformers5,
            Labels::IgnoreImageTokens => LabelRecipe::IgnoreImageTokens,
        }
    }

    fn config(&self, tied: &[(&str, &str)]) -> TrainingConfig {
        let Optimizer::Adamw = self.optimizer;
        TrainingConfig {
            learning_rate: self.lr,
            schedule: self.schedule,
            warmup_steps: self.warmup_steps,
            adamw: AdamWConfig { betas: self.betas, eps: self.eps, weight_decay: WeightDecay::All(self.weight_decay) },
            max_grad_norm: self.max_grad_norm,
            frozen: self.frozen.clone(),
            tied: tied.iter().map(|(tied, source)| ((*tied).to_owned(), (*source).to_owned())).collect(),
            ..TrainingConfig::new(self.steps)
        }
    }
}

impl Stages<'_> {
    /// Returns the rule that decides which labels of the case count: the rule of its training run, or the reference's
    /// rule if the case has no training run.
    pub(super) fn recipe(&self) -> LabelRecipe {
        self.case.file.train.as_ref().map_or(LabelRecipe::Transformers5, TrainSettings::recipe)
    }

    /// Compares the gradients and the training run of a case that has them. `tied` has pairs (tensor, source). `load`
    /// loads the model of a folder in f32.
    pub(super) fn training<M: Trainable + Sync>(
        &mut self,
        device: &Device,
        (prompts, images): (&Prompts, &[ImageTile]),
        tied: &[(&str, &str)],
        load: impl FnOnce(&Path, &Device) -> Result<M, Error>,
    ) -> Result<()> {
        let is_training = |name: &String| name.starts_with("grad.") || name.starts_with("train.");
        if !self.case.expected.keys().any(is_training) {
            return Ok(());
        }
        let settings = self.case.file.train.as_ref().context("case.json: `grad.` and `train.` tensors need `train`")?;
        let labels = self.case.expected("labels").context("`grad.` and `train.` tensors need `labels`")?;
        let batch = TrainingBatch {
            prompts: prompts.clone(),
            images: images.to_vec(),
            labels: labels.ints()?.to_vec(),
            recipe: settings.recipe(),
            parents: None,
        };
        let model = load(&self.case.checkpoint, &device.clone().autodiff())?;
        let mut trainer = Trainer::new(model, settings.config(tied))?;

        self.gradients(trainer.module().training_gradients(&batch)?, tied)?;
        let steps = (0..settings.steps)
            .map(|_| trainer.step(std::slice::from_ref(&batch), M::training_gradients))
            .collect::<Result<Vec<_>, _>>()?;
        let curve = |value: fn(&idefics_train::StepReport) -> f64| -> Vec<f32> {
            steps.iter().map(|step| value(step) as f32).collect()
        };
        let curves = [
            ("train.losses", curve(|step| step.loss)),
            ("train.grad_norms", curve(|step| step.grad_norm)),
            ("train.lrs", curve(|step| step.learning_rate)),
        ];
        for (name, ours) in curves {
            let Some(expected) = self.case.expected(name) else { continue };
            ensure!(
                expected.shape == [ours.len()],
                "`{name}` has shape {:?}, but `steps` is {}",
                expected.shape,
                ours.len()
            );
            let comparison =
                Comparison::floats(&expected.shape, &ours, expected.floats()?, self.case.tolerance(name), |_| true);
            self.report.stage(name, &comparison);
        }
        Ok(())
    }

    /// Compares every gradient in the case.
    pub(super) fn gradients(&mut self, mut found: LossGradients, tied: &[(&str, &str)]) -> Result<()> {
        found.gradients.scale(1.0 / found.n_labels as f64);
        found.gradients.tie(tied);
        for (name, expected) in &self.case.expected {
            let Some(tensor) = name.strip_prefix("grad.") else { continue };
            let comparison = match found.gradients.get(tensor) {
                None => Comparison::failed("this tensor has no gradient".to_owned()),
                Some(gradient) => {
                    let (ours, expected_values) = (floats(gradient.clone()), expected.floats()?);
                    let tolerance = self.case.tolerance(name);
                    match ours.len() == expected_values.len() {
                        false => Comparison::shape(&[ours.len()], &expected.shape),
                        true => Comparison::floats(&expected.shape, &ours, expected_values, tolerance, |_| true),
                    }
                }
            };
            self.report.stage(name, &comparison);
        }
        Ok(())
    }
}
