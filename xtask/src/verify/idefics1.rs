//! The stages of an IDEFICS v1 case.

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Device, Tensor};
use idefics_generate::processor::image::ImageTile;
use idefics_generate::processor::{ProcessedInputs, Processor, TokenBatch, image_attention_mask};
use idefics_generate::{Idefics1, ImageVectors, Model, Prompts, SeenImages, VisionBatch};
use idefics_train::{LabelRecipe, Trainable, TrainingBatch};

use super::stages::{Stages, floats};

impl Stages<'_> {
    /// Compares the image attention mask, `[batch, seq, n_images]`. If no row has an image, the reference has one empty
    /// slot.
    pub(super) fn image_attention_mask(
        &mut self,
        processor: &Processor,
        processed: &ProcessedInputs,
        tokens: &TokenBatch,
    ) -> Result<()> {
        if self.case.expected("processor.image_attention_mask").is_none() {
            return Ok(());
        }
        let n_images = processed.images.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let tokenizer = processor.tokenizer();
        let mask = image_attention_mask(tokens, n_images, tokenizer.image_token_id(), tokenizer.eos_token_id());
        self.ints("processor.image_attention_mask", &[tokens.batch, tokens.seq, n_images], &mask)
    }

    pub(super) fn idefics1(
        &mut self,
        device: &Device,
        processor: &Processor,
        processed: &ProcessedInputs,
        tokens: &TokenBatch,
    ) -> Result<()> {
        let model = Idefics1::from_folder(&self.case.checkpoint, device, self.case.weights(self.dtype)?, |_| ())?;
        let (images, n_images, slots) = self.idefics1_images(processed)?;
        let batches = model.shape().image_batches(&images, VisionBatch::default())?;
        let features = batches.iter().map(|batch| model.vision_features(batch)).collect::<Result<Vec<_>, _>>()?;
        let features = (!features.is_empty()).then(|| Tensor::cat(features, 0)); // all images have one size
        self.image_features("vision.last_hidden_state", features, &slots)?;
        let image_hidden_states = model.encode_images(&images)?;
        let equal = image_hidden_states.clone().and_then(ImageVectors::into_equal); // all images have one size
        self.image_features("image_hidden_states", equal, &slots)?;
        let (prompts, real) = self.prompts(tokens)?;
        let prompts = self.with_image_mask(prompts, processor, n_images)?;
        let n_layers = model.config().num_hidden_layers;
        let loss = |logits, labels: &[i64]| model.loss(logits, labels, LabelRecipe::Transformers5);
        self.decoder(&model, n_layers, (&prompts, &real), image_hidden_states, &loss)?;
        self.idefics1_gradients(device, &prompts, &images)?;
        self.generation(&model, processor, processed)
    }

    /// Returns the real images in the expected processor tensors, the number of images of each row, and for each image
    /// slot of the batch whether it holds an image. An all-zero slot is padding. If the case has no such tensors,
    /// returns the images that this project computes.
    fn idefics1_images(&self, processed: &ProcessedInputs) -> Result<(Vec<ImageTile>, Vec<usize>, Vec<bool>)> {
        let Some(pixel_values) = self.case.expected("processor.pixel_values") else {
            let n_images: Vec<usize> = processed.images.iter().map(Vec::len).collect();
            let slots = n_images.iter().copied().max().unwrap_or(0).max(1);
            let is_real = n_images.iter().flat_map(|&n_images| (0..slots).map(move |slot| slot < n_images)).collect();
            return Ok((processed.images.iter().flatten().cloned().collect(), n_images, is_real));
        };
        let &[_, slots, 3, height, width] = pixel_values.shape.as_slice() else {
            bail!("`processor.pixel_values` has shape {:?}; expected [batch, n_images, 3, h, w]", pixel_values.shape);
        };
        let all = pixel_values.floats()?.chunks(3 * height * width);
        let is_real: Vec<bool> = all.clone().map(|pixels| pixels.iter().any(|&value| value != 0.0)).collect();
        let real = all.zip(&is_real).filter(|(_, is_real)| **is_real);
        let tile = |(pixels, _): (&[f32], _)| ImageTile::new(width, height, pixels.to_vec());
        let images = real.map(tile).collect::<Result<_, _>>()?;
        let n_images = is_real.chunks(slots).map(|row| row.iter().filter(|real| **real).count()).collect();
        Ok((images, n_images, is_real))
    }

    /// Compares image features, `[images, n_vectors, width]`. If the expected tensor covers all image slots, only slots
    /// with an image are compared.
    fn image_features(&mut self, stage: &str, ours: Option<Tensor<3>>, is_real: &[bool]) -> Result<()> {
        let Some(expected) = self.case.expected(stage) else { return Ok(()) };
        let n_real = is_real.iter().filter(|real| **real).count();
        let has_all_slots = expected.shape.first() == Some(&is_real.len()) && n_real < is_real.len();
        let Some(ours) = ours else {
            ensure!(has_all_slots, "the case expects `{stage}`, but has no image");
            return Ok(());
        };
        if !has_all_slots {
            return self.tensor(stage, &ours, |_| true);
        }
        let [_, n_vectors, width] = ours.dims();
        let per_image = n_vectors * width;
        let values = floats(ours);
        let mut images = values.chunks(per_image);
        let mut placed = Vec::with_capacity(is_real.len() * per_image);
        for &is_real in is_real {
            match is_real.then(|| images.next()).flatten() {
                Some(image) => placed.extend_from_slice(image),
                None => placed.resize(placed.len() + per_image, 0.0),
            }
        }
        let tolerance = self.model_tolerance(stage, expected.floats()?);
        self.floats(stage, &[is_real.len(), n_vectors, width], &placed, tolerance, |index| is_real[index / per_image])
    }

    /// Adds an image attention mask to the prompts: the mask of the case, or the mask that this project computes if the
    /// case has none.
    fn with_image_mask(&self, prompts: Prompts, processor: &Processor, n_images: Vec<usize>) -> Result<Prompts> {
        let Some(mask) = self.case.expected("processor.image_attention_mask") else {
            let tokenizer = processor.tokenizer();
            return Ok(prompts.attend_to_latest_images(tokenizer.image_token_id(), tokenizer.eos_token_id()));
        };
        let &[batch, seq, slots] = mask.shape.as_slice() else {
            bail!("`processor.image_attention_mask` has shape {:?}; expected [batch, seq, n_images]", mask.shape);
        };
        ensure!(
            (batch, seq) == (prompts.batch(), prompts.seq()),
            "`processor.image_attention_mask` must have as many rows and slots as the ids"
        );
        // If no row has an image, the reference still has one image slot.
        let max_images = n_images.iter().copied().max().unwrap_or(0);
        let seen = mask.ints()?.chunks(slots).flat_map(|images| &images[..max_images.min(slots)]);
        let seen = seen.map(|&seen| seen != 0).collect();
        Ok(prompts.with_seen_images(SeenImages::new(n_images, seq, seen)?)?)
    }

    /// Compares the gradients of the loss.
    fn idefics1_gradients(&mut self, device: &Device, prompts: &Prompts, images: &[ImageTile]) -> Result<()> {
        if !self.case.expected.keys().any(|name| name.starts_with("grad.")) {
            return Ok(());
        }
        let labels = self.case.expected("labels").context("`grad.` tensors need `labels`")?;
        let batch = TrainingBatch {
            prompts: prompts.clone(),
            images: images.to_vec(),
            labels: labels.ints()?.to_vec(),
            recipe: LabelRecipe::Transformers5,
            parents: None,
        };
        let device = device.clone().autodiff();
        let model = Idefics1::from_folder(&self.case.checkpoint, &device, self.case.weights(DType::F32)?, |_| ())?;
        self.gradients(model.training_gradients(&batch)?, model.config().tied())
    }
}
