//! Pretrains the vision tower to classify the content of each patch. The public models have a pretrained SigLIP tower
//! instead. With a pretrained tower, connector and decoder start from useful features.

use anyhow::Result;
use burn::module::Module;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_demo::{N_PATCH_CLASSES, PatchLabel, PatchShape, Purpose, Scene};
use idefics_generate::nn::Linear;
use idefics_generate::processor::image::ImageTile;
use idefics_generate::vision::{PatchLayout, VisionConfig, VisionTransformer};
use idefics_generate::{VisionBatch, image_batches};
use idefics_train::{BatchError, LossGradients};
use rand::Rng;

use super::data::PICTURES;

/// Weight of the loss for the covered pixels, relative to the class loss.
const COVERED_WEIGHT: f64 = 1.0;
/// Weight of the loss for the position and radius of the shape, relative to the class loss.
const SHAPE_WEIGHT: f64 = 0.3;
/// Weight of each of three losses (for the column, the row and the size grade), relative to the class loss.
const GRADE_WEIGHT: f64 = 0.5;
/// Number of classes for the column, the row and the size grade: ten values each, and one class for background.
const N_GRADES: usize = 11;
/// Factor that scales the centre of a shape (a fraction of the image) to the magnitude of the other regression targets
/// (in patches).
const CENTRE_SCALE: f32 = 8.0;
/// Maximum number of shapes in a scene.
const MAX_SHAPES: usize = 3;
/// Side of a square sheet of shapes, in pixels.
const SHEET: u32 = 96;

/// The vision tower with classification heads, which are discarded after pretraining.
#[derive(Module, Debug)]
pub(super) struct PatchClassifier {
    pub(super) vision_model: VisionTransformer,
    /// Predicts kind and colour of the shape in the patch.
    class: Linear,
    /// Predicts which pixels of the patch the shape covers. Teaches the tower to separate form from colour.
    covered: Linear,
    /// Predicts the offset of the shape's centre from the patch, the radius, and the centre in the image. Teaches the
    /// tower to look beyond the patch.
    shape: Linear,
    /// Predicts the index of the shape, counted from the left. Teaches the tower to look beyond the shape.
    number: Linear,
    /// Predicts the tenth of the image, from the left, that contains the shape's centre. Questions ask about column,
    /// row and size. The decoder can read them as easily as kind and colour, because they are classes too.
    column: Linear,
    /// Predicts the tenth of the image, from the top, that contains the shape's centre.
    row: Linear,
    /// Predicts the size grade of the shape.
    grade: Linear,
}

/// Images of one size, with labels for each patch.
pub(super) struct PatchBatch {
    /// Pixel values, `[n_images, 3, height, width]`.
    pixel_values: TensorData,
    layout: PatchLayout,
    /// Class of each patch, `[n_images · patches]`: background, or a combination of kind and colour.
    classes: Vec<i32>,
    /// `[n_images · patches, patch²]`: 1 where the shape covers the pixel, else 0.
    covered: Vec<f32>,
    /// `[n_images · patches, 5]`: offset, radius and centre of [`PatchShape`], or zeros.
    shapes: Vec<f32>,
    /// `[n_images · patches, 1]`: 1 if the patch shows a shape, else 0.
    is_shape: Vec<f32>,
    /// `[n_images · patches]`: 0 for background, else the number of the shape, counted from the left and starting at 1.
    /// `None` for sheets, which have too many shapes.
    numbers: Option<Vec<i32>>,
    /// `[n_images · patches]`: 0 for background, else 1 + the tenth of the image's width.
    columns: Vec<i32>,
    /// `[n_images · patches]`: 0 for background, else 1 + the tenth of the image's height.
    rows: Vec<i32>,
    /// `[n_images · patches]`: 0 for background, else 1 + the size grade.
    grades: Vec<i32>,
}

impl PatchClassifier {
    pub(super) fn new(config: &VisionConfig, device: &Device) -> Result<Self> {
        let d = config.hidden_size;
        Ok(Self {
            vision_model: config.init(device)?,
            class: Linear::new(d, N_PATCH_CLASSES, device),
            covered: Linear::new(d, config.patch_size.pow(2), device),
            shape: Linear::new(d, 5, device),
            number: Linear::new(d, 1 + MAX_SHAPES, device),
            column: Linear::new(d, N_GRADES, device),
            row: Linear::new(d, N_GRADES, device),
            grade: Linear::new(d, N_GRADES, device),
        })
    }

    /// Computes the gradients of the weighted sum of all losses, summed over all patches.
    pub(super) fn training_gradients(&self, batch: &PatchBatch) -> Result<LossGradients, BatchError> {
        let layout = &batch.layout;
        let n_patches = layout.n_images() * layout.shared().patches();
        let device = self.vision_model.post_layernorm.weight.val().device();
        let upload = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [n_patches, values.len() / n_patches]);
            Tensor::<2>::from_data(data, (&device, DType::F32))
        };
        let pixel_values = Tensor::from_data(batch.pixel_values.clone(), (&device, DType::F32));
        let features = self.vision_model.forward(pixel_values, layout); // [n_images, patches, d]
        let d = features.dims()[2];
        let features = features.reshape([n_patches, d]);

        let cross_entropy = |head: &Linear, classes: &[i32]| {
            let classes = TensorData::new(classes.to_vec(), [n_patches, 1]);
            let classes = Tensor::<2, Int>::from_data(classes, (&device, DType::I32));
            -log_softmax(head.forward(features.clone()), 1).gather(1, classes).sum()
        };
        let class_loss = cross_entropy(&self.class, &batch.classes);

        // The loss is −log σ(±x), with a positive sign for covered pixels and a negative sign for all others.
        let sign = upload(&batch.covered) * 2.0 - 1.0;
        let pixels = batch.covered.len() / n_patches;
        let covered_loss = -log_sigmoid(self.covered.forward(features.clone()) * sign).sum() / pixels as f64;

        let difference = (self.shape.forward(features.clone()) - upload(&batch.shapes)) * upload(&batch.is_shape);
        let shape_loss = difference.square().sum();

        let grade_loss = cross_entropy(&self.column, &batch.columns)
            + cross_entropy(&self.row, &batch.rows)
            + cross_entropy(&self.grade, &batch.grades);

        let mut loss =
            grade_loss * GRADE_WEIGHT + class_loss + covered_loss * COVERED_WEIGHT + shape_loss * SHAPE_WEIGHT;
        if let Some(numbers) = &batch.numbers {
            loss = loss + cross_entropy(&self.number, numbers);
        }
        Ok(LossGradients::backward(&loss, n_patches, self))
    }
}

/// Creates micro-batch `index` of the run: scenes or, if `sheets` is set, sheets full of shapes. The tower learns forms
/// faster from sheets.
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
    let bytes_per_patch = config.activation_bytes_per_patch();
    let mut batches = image_batches(&tiles, config.patch_size, bytes_per_patch, VisionBatch::default())?;
    let images = batches.pop().expect("images of one size form one batch");
    let labels: Vec<PatchLabel> = scenes.iter().flat_map(|scene| scene.patch_labels(config.patch_size)).collect();
    let per_patch = |value: fn(PatchShape) -> u8| {
        labels.iter().map(|label| label.shape.map_or(0, |shape| 1 + i32::from(value(shape)))).collect::<Vec<_>>()
    };
    Ok(PatchBatch {
        columns: per_patch(|shape| shape.tenths[0]),
        rows: per_patch(|shape| shape.tenths[1]),
        grades: per_patch(|shape| shape.grade),
        numbers: (!sheets).then(|| per_patch(|shape| shape.number as u8)),
        pixel_values: images.pixel_values(),
        layout: PatchLayout::new(&vec![images.grid; tiles.len()], config.positions_per_side()),
        classes: labels.iter().map(|label| i32::from(label.class)).collect(),
        covered: labels.iter().flat_map(|label| &label.covered).map(|&covered| f32::from(u8::from(covered))).collect(),
        shapes: labels.iter().flat_map(|label| shape_targets(label.shape)).collect(),
        is_shape: labels.iter().map(|label| f32::from(u8::from(label.shape.is_some()))).collect(),
    })
}

/// Returns the regression targets of a shape, scaled to similar magnitudes, or zeros for background.
fn shape_targets(shape: Option<PatchShape>) -> [f32; 5] {
    let Some(PatchShape { offset: [right, down], radius, centre: [x, y], .. }) = shape else { return [0.0; 5] };
    [right, down, radius, CENTRE_SCALE * x, CENTRE_SCALE * y]
}

/// Renders a scene as the processor would prepare it: not resized, with values `x / 127.5 − 1`.
fn tile(scene: &Scene) -> ImageTile {
    let picture = scene.render();
    let (width, height) = (scene.width as usize, scene.height as usize);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        pixels.extend(picture.pixels().map(|pixel| f32::from(pixel[channel]) / 127.5 - 1.0));
    }
    ImageTile::new(width, height, pixels).expect("the scene has three channels")
}
