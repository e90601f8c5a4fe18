//! Gradient checkpointing: keeps only the outputs of segments, and runs a segment again when its gradients are
//! computed. This costs a second forward pass, but only one layer at a time needs memory for its activations.
//!
//! Paper: <https://arxiv.org/abs/1604.06174>. The first forward pass runs without autodiff. A segment has a backward
//! pass only if it has a trained parameter, or reads the output of a segment that has one.

use burn::tensor::Tensor;

use crate::segments::Segment;
use crate::trainable::targets;
use crate::{BatchError, Gradients, LossGradients, Segments, TrainingBatch};

/// Computes the same gradients as [`Trainable::training_gradients`](crate::Trainable::training_gradients), but keeps
/// the activations of only one segment at a time.
///
/// # Errors
/// As [`Trainable::training_gradients`](crate::Trainable::training_gradients).
///
/// # Panics
/// As [`Trainable::training_gradients`](crate::Trainable::training_gradients).
pub fn training_gradients_checkpointed<M: Segments>(
    model: &M,
    batch: &TrainingBatch,
) -> Result<LossGradients, BatchError> {
    let n_labels = targets(model, batch)?.len();
    if n_labels == 0 {
        return Ok(LossGradients::default());
    }
    let plain = model.valid();
    let segments = model.segments(batch)?.segments;
    let needs_gradients = segments_with_gradients(&segments);
    let head = segments.len() - 1;

    // Forward pass. Keeps the outputs that the backward pass needs.
    let mut outputs: Vec<Option<Tensor<3>>> = Vec::with_capacity(segments.len());
    for (index, segment) in segments.iter().enumerate() {
        if index == head && needs_gradients[head] {
            break; // the backward pass runs the head with autodiff
        }
        let output = (segment.forward)(&plain, &inputs(segment, &outputs))?;
        outputs.push(Some(output));
        for &input in &segment.inputs {
            let is_kept = segments[index + 1..].iter().any(|later| later.inputs.contains(&input))
                || segments
                    .iter()
                    .zip(&needs_gradients)
                    .any(|(reader, needed)| *needed && reader.inputs.contains(&input));
            if !is_kept {
                outputs[input] = None;
            }
        }
    }
    if !needs_gradients[head] {
        let loss = outputs.pop().flatten().expect("the forward pass has run the head");
        return Ok(LossGradients { loss: loss.into_scalar::<f64>(), n_labels, gradients: Gradients::default() });
    }

    // Backward pass, by the chain rule.
    let mut loss = 0.0;
    let mut gradients = Gradients::default();
    let mut output_gradients: Vec<Option<Tensor<3>>> = vec![None; segments.len()];
    for (index, segment) in segments.iter().enumerate().rev() {
        outputs.truncate(index); // no earlier segment reads this output
        let gradient = output_gradients[index].take();
        if !needs_gradients[index] || (index < head && gradient.is_none()) {
            continue;
        }
        let leaf = |(input, &input_idx): (Tensor<3>, &usize)| {
            let input = Tensor::from_inner(input);
            if needs_gradients[input_idx] { input.require_grad() } else { input }
        };
        let inputs: Vec<Tensor<3>> = inputs(segment, &outputs).into_iter().zip(&segment.inputs).map(leaf).collect();
        let output = (segment.forward)(model, &inputs)?;
        let product = match gradient {
            None => output.sum(), // this is the head, whose output is the loss
            Some(gradient) => (output * Tensor::from_inner(gradient)).sum(),
        };
        if index == head {
            loss = product.clone().into_scalar::<f64>();
        }
        if !product.is_tracked() {
            continue; // the output of this batch depends on no trained parameter
        }
        let mut found = product.backward();
        gradients.accumulate(Gradients::collect(model, &mut found));
        for (input, &input_idx) in inputs.iter().zip(&segment.inputs) {
            if needs_gradients[input_idx]
                && let Some(gradient) = input.grad_remove(&mut found)
            {
                let sum = output_gradients[input_idx].take();
                output_gradients[input_idx] = Some(sum.map_or(gradient.clone(), |sum| sum + gradient));
            }
        }
    }
    Ok(LossGradients { loss, n_labels, gradients })
}

/// Returns, for each segment, whether it needs gradients: it has a trained parameter, or it reads, directly or through
/// other segments, the output of a segment that has one.
fn segments_with_gradients<M>(segments: &[Segment<'_, M>]) -> Vec<bool> {
    let mut reached: Vec<bool> = Vec::with_capacity(segments.len());
    for segment in segments {
        reached.push(segment.is_trained || segment.inputs.iter().any(|&input| reached[input]));
    }
    reached
}

/// Returns the inputs of a segment.
fn inputs<M>(segment: &Segment<'_, M>, outputs: &[Option<Tensor<3>>]) -> Vec<Tensor<3>> {
    let output = |&input: &usize| outputs[input].clone().expect("outputs are kept until they are read");
    segment.inputs.iter().map(output).collect()
}
