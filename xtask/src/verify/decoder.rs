//! The decoder stages: hidden states, attention weights, logits and loss.

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Tensor, TensorData};
use idefics_generate::processor::TokenBatch;
use idefics_generate::text::DecoderObserver;
use idefics_generate::{ImageVectors, Model, Prompts};
use idefics_train::BatchError;

use super::compare::Comparison;
use super::margins::{NMSE, nmse};
use super::stages::{Stages, floats};

/// A function that computes the loss from logits, `[batch, seq, vocab_size]`, and labels.
type LossFunction<'a> = dyn Fn(Tensor<3>, &[i64]) -> Result<Tensor<1>, BatchError> + 'a;

impl Stages<'_> {
    /// Returns the ids or the mask that the case expects, or `ours` (what this project computes) if the case has none.
    fn ids_or_ours(&self, name: &str, shape: [usize; 2], ours: &[i64]) -> Result<([usize; 2], Vec<i64>)> {
        match self.case.expected(name) {
            None => {
                ensure!(ours.len() == shape[0] * shape[1], "the case needs `{name}`, because ours has another shape");
                Ok((shape, ours.to_vec()))
            }
            Some(expected) => {
                let &[batch, seq] = expected.shape.as_slice() else {
                    bail!("`{name}` has shape {:?}; expected [batch, seq]", expected.shape);
                };
                Ok(([batch, seq], expected.ints()?.to_vec()))
            }
        }
    }

    /// Returns the expected prompts, or the prompts that this project computes if the case has none. Also returns for
    /// each slot whether it is a real token.
    pub(super) fn prompts(&self, tokens: &TokenBatch) -> Result<(Prompts, Vec<bool>)> {
        let (shape, ids) = self.ids_or_ours("processor.input_ids", [tokens.batch, tokens.seq], &tokens.input_ids)?;
        let (mask_shape, mask) = self.ids_or_ours("processor.attention_mask", shape, &tokens.attention_mask)?;
        ensure!(mask_shape == shape, "`processor.attention_mask` has shape {mask_shape:?}, but the ids have {shape:?}");
        let ids = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
        let real: Vec<bool> = mask.iter().map(|&mask| mask != 0).collect();
        Ok((Prompts::from_padded(ids, &real, shape[1])?, real))
    }

    /// Compares the outputs of the decoder. `loss` computes the loss from logits and labels.
    pub(super) fn decoder(
        &mut self,
        model: &dyn Model,
        n_layers: usize,
        (prompts, real): (&Prompts, &[bool]),
        image_hidden_states: Option<ImageVectors>,
        loss: &LossFunction<'_>,
    ) -> Result<()> {
        let wanted = |name: &String| {
            ["hidden_states.", "attentions."].iter().any(|prefix| name.starts_with(prefix))
                || ["logits", "loss"].contains(&name.as_str())
        };
        if !self.case.expected.keys().any(wanted) {
            return Ok(());
        }
        let (seq, shape) = (prompts.seq(), [prompts.batch(), prompts.seq()]);

        let expects = |kind: &str, index: usize| self.case.expected(&format!("{kind}.{index}")).is_some();
        let mut seen = Recorder {
            wanted_hidden_states: (0..=n_layers).map(|index| expects("hidden_states", index)).collect(),
            wanted_attentions: (0..n_layers).map(|index| expects("attentions", index)).collect(),
            ..Recorder::default()
        };
        let mut cache = model.cache(prompts, 0);
        let hidden_states = model.prefill_observed(prompts, image_hidden_states, &mut cache, &mut seen)?;

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
            "the case expects hidden states or attentions of layers that the model does not have"
        );

        if self.case.expected("logits").is_none() && self.case.expected("loss").is_none() {
            return Ok(());
        }
        let logits = model.logits(hidden_states); // [batch, seq, vocab_size]
        let vocab_size = logits.dims()[2];
        if let Some(expected) = self.case.expected("logits") {
            self.tensor("logits", &logits, |flat| real[flat / vocab_size])?;
            if self.is_16_bit() && expected.shape == logits.dims() {
                let error = nmse(&floats(logits.clone()), expected.floats()?, |flat| real[flat / vocab_size]);
                self.report.stage("logits.nmse", &Comparison::number(error, NMSE));
            }
        }
        if let Some(labels) = self.case.expected("labels") {
            ensure!(labels.shape == shape, "`labels` has shape {:?}, but the ids have {shape:?}", labels.shape);
            let logits = self.with_expected_padding(logits, real)?;
            let loss = floats(loss(logits, labels.ints()?)?);
            let expected = self.case.expected("loss").context("the case has `labels`, so it needs `loss`")?.floats()?;
            ensure!(expected.len() == 1, "`loss` has {} values; expected 1", expected.len());
            let tolerance = self.model_tolerance("loss", expected);
            self.report.stage("loss", &Comparison::floats(&[], &loss, expected, tolerance, |_| true));
        }
        Ok(())
    }

    /// Returns the logits that this project computes, with the expected logits at the padded slots.
    ///
    /// The reference's loss includes the prediction of a row's first token, which is made at the last padded slot. The
    /// result at a padded slot depends on the attention kernel: eager attention averages all values, SDPA returns 0. It
    /// is not compared anywhere else.
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
}

/// Records the intermediate results of the decoder that the case expects.
#[derive(Default)]
struct Recorder {
    wanted_hidden_states: Vec<bool>,
    wanted_attentions: Vec<bool>,
    hidden_states: Vec<(usize, Tensor<3>)>,
    attentions: Vec<(usize, Tensor<4>)>,
}

impl DecoderObserver for Recorder {
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
