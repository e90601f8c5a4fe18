//! First the vision tower learns to say of each patch what it shows, as the public model begins with a trained SigLIP:
//! the decoder then learns from features that mean something.

use anyhow::Result;
use burn::module::Module;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_demo::{N_PATCH_CLASSES, PatchLabel, Purpose, Scene};
use idefics_generate::nn::Linear;
use idefics_generate::processor::image::ImageTile;
use idefics_generate::train::LossGradients;
use idefics_generate::vision::{PatchLayout, VisionConfig, VisionTransformer};
use idefics_generate::{ImageBatch, InputError, image_batches};
use rand::Rng;

use super::data::PICTURES;

/// What the loss of covered pixels and that of the shape's place count beside that of the class.
const COVERED_WEIGHT: f64 = 1.0;
const SHAPE_WEIGHT: f64 = 0.3;
/// Sides of a sheet, in pixels.
const SHEET: u32 = 96;

/// The tower with heads that are thrown away.
#[derive(Module, Debug)]
pub(super) struct PatchClassifier {
    pub(super) vision_model: VisionTransformer,
    /// Kind and colour of what a patch shows.
    class: Linear,
    /// Which of its pixels are covered: what makes the tower tell form from colour.
    covered: Linear,
    /// Where the shape's middle is, and its radius: what makes it look beyond the patch.
    shape: Linear,
}

/// Pictures of one size, and what each patch shows.
pub(super) struct PatchBatch {
    images: ImageBatch,
    /// `[n_images · patches]`.
    classes: Vec<i32>,
    /// `[n_images · patches, patch²]`, 0 or 1.
    covered: Vec<f32>,
    /// `[n_images · patches, 3]`: [`idefics_demo::PatchLabel::shape`], or zeros.
    shapes: Vec<f32>,
    /// `[n_images · patches, 1]`: 1 where there is a shape.
    is_shape: Vec<f32>,
}

impl PatchClassifier {
    pub(super) fn new(config: &VisionConfig, device: &Device) -> Self {
        let d = config.hidden_size;
        Self {
            vision_model: config.init(device),
            class: Linear::new(d, N_PATCH_CLASSES, device),
            covered: Linear::new(d, config.patch_size.pow(2), device),
            shape: Linear::new(d, 3, device),
        }
    }

    /// The gradients of the three losses, summed over all patches.
    pub(super) fn training_gradients(&self, batch: &PatchBatch) -> Result<LossGradients, InputError> {
        let layout: &PatchLayout = &batch.images.layout;
        let n_patches = layout.n_images() * layout.shared().patches();
        let device = self.vision_model.post_layernorm.weight.val().device();
        let upload = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [n_patches, values.len() / n_patches]);
            Tensor::<2>::from_data(data, (&device, DType::F32))
        };
        let features = self.vision_model.forward(batch.images.upload(&device), layout); // [n_images, patches, d]
        let d = features.dims()[2];
        let features = features.reshape([n_patches, d]);

        let classes = TensorData::new(batch.classes.clone(), [n_patches, 1]);
        let classes = Tensor::<2, Int>::from_data(classes, (&device, DType::I32));
        let class_loss = -log_softmax(self.class.forward(features.clone()), 1).gather(1, classes).sum();

        // −log σ(±x), the sign that of the pixel.
        let sign = upload(&batch.covered) * 2.0 - 1.0;
        let pixels = batch.covered.len() / n_patches;
        let covered_loss = -log_sigmoid(self.covered.forward(features.clone()) * sign).sum() / pixels as f64;

        let difference = (self.shape.forward(features) - upload(&batch.shapes)) * upload(&batch.is_shape);
        let shape_loss = difference.square().sum();

        let loss = class_loss + covered_loss * COVERED_WEIGHT + shape_loss * SHAPE_WEIGHT;
        Ok(LossGradients::backward(&loss, n_patches, self))
    }
}

/// Micro-batch `index` of the run: sheets full of shapes, from which forms are learned faster, or scenes.
pub(super) fn micro_batch(config: &VisionConfig, seed: u64, index: u64, sheets: bool) -> Result<PatchBatch> {
    let rng = &mut idefics_demo::rng(Purpose::Training, seed, index);
    let scenes: Vec<Scene> = if sheets {
        let cell = SHEET / rng.random_range(2..=4);
        (0..PICTURES).map(|_| Scene::sheet(rng, SHEET, SHEET, cell)).collect()
    } else {
        let (width, height) = idefics_demo::random_size(rng);
        (0..PICTURES).map(|_| Scene::random(rng, width, height)).collect()
    };
    let tiles: Vec<ImageTile> = scenes.iter().map(tile).collect();
    let images = image_batches(&tiles, config)?.pop().expect("pictures of one size are one batch");
    let labels: Vec<PatchLabel> = scenes.iter().flat_map(|scene| scene.patch_labels(config.patch_size)).collect();
    Ok(PatchBatch {
        images,
        classes: labels.iter().map(|label| i32::from(label.class)).collect(),
        covered: labels.iter().flat_map(|label| &label.covered).map(|&covered| f32::from(u8::from(covered))).collect(),
        shapes: labels.iter().flat_map(|label| label.shape.unwrap_or_default()).collect(),
        is_shape: labels.iter().map(|label| f32::from(u8::from(label.shape.is_some()))).collect(),
    })
}

/// The picture as the processor gives it: no resizing, `x / 127.5 − 1`.
fn tile(scene: &Scene) -> ImageTile {
    let picture = scene.render();
    let (width, height) = (scene.width as usize, scene.height as usize);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        pixels.extend(picture.pixels().map(|pixel| f32::from(pixel[channel]) / 127.5 - 1.0));
    }
    ImageTile { height, width, pixels }
}
