//! The backward pass in bounded memory: only each layer's input is kept, and the layer runs again when its gradients
//! are due. One more forward pass, for activations of one layer instead of all.
//!
//! Paper: <https://arxiv.org/abs/1604.06174>. The forward pass is the model's own, on the plain device.

use burn::module::Module;
use burn::tensor::Tensor;
use idefics_generate::{Idefics2, ImageBatch, InputError, Model, VisionBatch};
use idefics_text::{DecoderObserver, Unobserved};
use idefics_vision::patch_mask;

use crate::idefics2::summed_loss;
use crate::{Gradients, LossGradients, Trainable, TrainingBatch};

/// As [`Trainable::training_gradients`], with the activations of one layer at a time.
///
/// # Errors
/// As [`Trainable::training_gradients`].
///
/// # Panics
/// As [`Trainable::training_gradients`].
pub fn training_gradients_recomputing(model: &Idefics2, batch: &TrainingBatch) -> Result<LossGradients, InputError> {
    let plain = model.valid();
    let image_batches = model.shape().image_batches(&batch.images, VisionBatch::default())?;

    // Forward, keeping the input of each layer.
    let vision: Vec<VisionInputs> = image_batches.iter().map(|images| VisionInputs::of(&plain, images)).collect();
    let image_hidden_states = plain.encode_images(&batch.images)?; // [n_images, n_latents, d]
    let inputs_embeds = plain.inputs_embeds(&batch.prompts, image_hidden_states.clone())?;
    let mut decoder = LayerInputs::default();
    let mut cache = plain.cache(&batch.prompts, 0);
    let places = batch.places(plain.decoder(), &inputs_embeds, &cache);
    plain.decoder().forward_at(inputs_embeds, &places, &mut cache, &mut decoder);

    // Backward, from the loss to the pixels.
    let targets = batch.targets(model.ignored_label(batch.recipe));
    let mut backward = Backward { model, gradients: Gradients::default() };
    let last = decoder.hidden_states.pop().expect("the decoder shows its result");
    let (loss, mut gradient) = backward.loss(last, |last| summed_loss(model, last, &targets));
    // What the decoder shows last is normed; the norm belongs to the last layer's segment.
    let n_layers = model.model.text_model.layers.len();
    for layer_idx in (0..n_layers).rev() {
        let input = decoder.hidden_states.pop().expect("the decoder shows each layer's input");
        gradient = backward.through(input, gradient, |input| {
            let mut cache = model.cache(&batch.prompts, 0);
            let places = batch.places(model.decoder(), &input, &cache);
            model.decoder().layers(layer_idx..layer_idx + 1, input, &places, &mut cache, &mut Unobserved)
        });
    }
    let image_gradient = backward.embeddings(batch, image_hidden_states, gradient)?;
    if let Some(image_gradient) = image_gradient {
        for (images, inputs) in image_batches.iter().zip(vision) {
            let rows: Vec<Tensor<3>> =
                images.image_indices.iter().map(|&image| image_gradient.clone().narrow(0, image, 1)).collect();
            backward.vision(images, inputs, Tensor::cat(rows, 0));
        }
    }
    Ok(LossGradients { loss, n_labels: targets.len(), gradients: backward.gradients })
}

/// The inputs of a decoder's layers, and after them its normed result.
#[derive(Default)]
struct LayerInputs {
    hidden_states: Vec<Tensor<3>>,
}

impl DecoderObserver for LayerInputs {
    fn hidden_states(&mut self, _index: usize, hidden_states: &Tensor<3>) {
        self.hidden_states.push(hidden_states.clone());
    }
}

/// The inputs of the vision tower's layers for one batch of images.
struct VisionInputs {
    /// `[n_images, patches, d_vision]`, one a layer, and after them the last layer's output.
    hidden_states: Vec<Tensor<3>>,
}

impl VisionInputs {
    fn of(model: &Idefics2, images: &ImageBatch<'_>) -> Self {
        let vision_model = &model.model.vision_model;
        let pixel_values = images.upload(&Model::device(model));
        let layout = model.layout(images);
        let mut hidden_states = vec![vision_model.embeddings.forward(pixel_values.clone(), &layout)];
        vision_model.forward_observed(pixel_values, &layout, |_, output| hidden_states.push(output.clone()));
        Self { hidden_states }
    }
}

/// The chain rule, one segment at a time.
struct Backward<'a> {
    model: &'a Idefics2,
    gradients: Gradients,
}

impl Backward<'_> {
    /// The loss that `forward` computes from `input`, and its gradient with respect to that.
    fn loss(&mut self, input: Tensor<3>, forward: impl FnOnce(Tensor<3>) -> Tensor<1>) -> (f64, Tensor<3>) {
        let input = Tensor::from_inner(input).require_grad();
        let loss = forward(input.clone());
        let gradient = self.run(&input, &loss);
        (loss.into_scalar::<f64>(), gradient)
    }

    /// From the gradient with respect to what `forward` computes from `input` to that with respect to `input`.
    fn through(
        &mut self,
        input: Tensor<3>,
        gradient: Tensor<3>,
        forward: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let input = Tensor::from_inner(input).require_grad();
        let product = (forward(input.clone()) * Tensor::from_inner(gradient)).sum();
        self.run(&input, &product)
    }

    fn run(&mut self, input: &Tensor<3>, result: &Tensor<1>) -> Tensor<3> {
        let mut found = result.backward();
        self.gradients.accumulate(Gradients::collect(self.model, &mut found));
        input.grad_remove(&mut found).unwrap_or_else(|| input.clone().inner().zeros_like())
    }

    /// Through the merge of text and image vectors; returns the gradient with respect to the images'.
    fn embeddings(
        &mut self,
        batch: &TrainingBatch,
        image_hidden_states: Option<Tensor<3>>,
        gradient: Tensor<3>,
    ) -> Result<Option<Tensor<3>>, InputError> {
        let images = image_hidden_states.map(|states| Tensor::from_inner(states).require_grad());
        let inputs_embeds = self.model.inputs_embeds(&batch.prompts, images.clone())?;
        let product = (inputs_embeds * Tensor::from_inner(gradient)).sum();
        if !product.is_tracked() {
            return Ok(None); // no image, and the embeddings are frozen
        }
        let mut found = product.backward();
        self.gradients.accumulate(Gradients::collect(self.model, &mut found));
        Ok(images.and_then(|images| images.grad_remove(&mut found)))
    }

    /// Through connector and vision tower of one batch of images.
    fn vision(&mut self, images: &ImageBatch<'_>, inputs: VisionInputs, gradient: Tensor<3>) {
        let model = &self.model.model;
        let VisionInputs { mut hidden_states } = inputs;
        let last = hidden_states.pop().expect("the tower shows its last layer");
        let mut gradient = self.through(last, gradient, |last| {
            model.connector.forward(model.vision_model.post_layernorm.forward(last), None)
        });
        let masked_out = patch_mask(&self.model.layout(images), &gradient.device().autodiff());
        for layer in model.vision_model.encoder.layers.iter().rev() {
            let input = hidden_states.pop().expect("the tower shows each layer");
            gradient = self.through(input, gradient, |input| layer.forward(input, masked_out.clone()));
        }
        let embedded = model
            .vision_model
            .embeddings
            .forward(images.upload(&Model::device(self.model)), &self.model.layout(images));
        let product = (embedded * Tensor::from_inner(gradient)).sum();
        if product.is_tracked() {
            self.gradients.accumulate(Gradients::collect(self.model, &mut product.backward()));
        }
    }
}
