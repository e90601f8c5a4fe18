//! First the vision tower learns to say of each patch what it shows, as the public model begins with a trained SigLIP:
//! the decoder then learns from features that mean something.

use anyhow::Result;
use burn::module::Module;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_demo::{N_PATCH_CLASSES, PatchLabel, PatchShape, Purpose, Scene};
use idefics_generate::nn::Linear;
use idefics_generate::processor::image::ImageTile;
use idefics_generate::vision::{PatchLayout, VisionConfig, VisionTransformer};
use idefics_generate::{InputError, VisionBatch, image_batches};
use idefics_train::LossGradients;
use rand::Rng;

use super::data::PICTURES;

/// What the loss of covered pixels and that of the shape's place count beside that of the class.
const COVERED_WEIGHT: f64 = 1.0;
const SHAPE_WEIGHT: f64 = 0.3;
/// What each of its tenths and its grade counts.
const GRADE_WEIGHT: f64 = 0.5;
/// Tenths, and grades, and nothing.
const N_GRADES: usize = 11;
/// Factor on the centre of a shape in the loss: as if pictures were this many patches wide and high.
const CENTRE_SCALE: f32 = 8.0;
/// Shapes of a scene at most.
const MAX_SHAPES: usize = 3;
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
    /// Where the shape's middle is, seen from the patch and in the picture, and its radius: what makes it look beyond
    /// the patch.
    shape: Linear,
    /// Which shape from the left it is: what makes it look beyond the shape.
    number: Linear,
    /// In which tenth of the picture its middle is, from the left and from the top, and how large it is: as questions
    /// ask for it, and so that the decoder can read it as easily as a kind or a colour.
    column: Linear,
    row: Linear,
    grade: Linear,
}

/// Pictures of one size, and what each patch shows.
pub(super) struct PatchBatch {
    /// `[n_images, 3, height, width]`.
    pixel_values: TensorData,
    layout: PatchLayout,
    /// `[n_images · patches]`.
    classes: Vec<i32>,
    /// `[n_images · patches, patch²]`, 0 or 1.
    covered: Vec<f32>,
    /// `[n_images · patches, 5]`: offset, radius and centre of [`PatchShape`], or zeros.
    shapes: Vec<f32>,
    /// `[n_images · patches, 1]`: 1 where there is a shape.
    is_shape: Vec<f32>,
    /// `[n_images · patches]`: 0 for background, else 1 and more from the left. `None` on sheets, which have too many.
    numbers: Option<Vec<i32>>,
    /// `[n_images · patches]` each: 0 for background, else 1 and more.
    columns: Vec<i32>,
    rows: Vec<i32>,
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

    /// The gradients of all losses, summed over all patches.
    pub(super) fn training_gradients(&self, batch: &PatchBatch) -> Result<LossGradients, InputError> {
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

        // −log σ(±x), the sign that of the pixel.
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
    let bytes_per_patch = config.activation_bytes_per_patch();
    let mut batches = image_batches(&tiles, config.patch_size, bytes_per_patch, VisionBatch::default())?;
    let images = batches.pop().expect("pictures of one size are one batch");
    let labels: Vec<PatchLabel> = scenes.iter().flat_map(|scene| scene.patch_labels(config.patch_size)).collect();
    let of_shapes = |value: fn(PatchShape) -> u8| {
        labels.iter().map(|label| label.shape.map_or(0, |shape| 1 + i32::from(value(shape)))).collect::<Vec<_>>()
    };
    Ok(PatchBatch {
        columns: of_shapes(|shape| shape.tenths[0]),
        rows: of_shapes(|shape| shape.tenths[1]),
        grades: of_shapes(|shape| shape.grade),
        numbers: (!sheets).then(|| of_shapes(|shape| shape.number as u8)),
        pixel_values: images.pixel_values(),
        layout: PatchLayout::new(&vec![images.grid; tiles.len()], config.positions_per_side()),
        classes: labels.iter().map(|label| i32::from(label.class)).collect(),
        covered: labels.iter().flat_map(|label| &label.covered).map(|&covered| f32::from(u8::from(covered))).collect(),
        shapes: labels.iter().flat_map(|label| shape_targets(label.shape)).collect(),
        is_shape: labels.iter().map(|label| f32::from(u8::from(label.shape.is_some()))).collect(),
    })
}

/// Numbers of about the same size.
fn shape_targets(shape: Option<PatchShape>) -> [f32; 5] {
    let Some(PatchShape { offset: [right, down], radius, centre: [x, y], .. }) = shape else { return [0.0; 5] };
    [right, down, radius, CENTRE_SCALE * x, CENTRE_SCALE * y]
}

/// The picture as the processor gives it: no resizing, `x / 127.5 − 1`.
fn tile(scene: &Scene) -> ImageTile {
    let picture = scene.render();
    let (width, height) = (scene.width as usize, scene.height as usize);
    let mut pixels = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        pixels.extend(picture.pixels().map(|pixel| f32::from(pixel[channel]) / 127.5 - 1.0));
    }
    ImageTile::new(width, height, pixels).expect("a picture has three channels")
}
