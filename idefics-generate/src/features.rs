//! Groups image tiles into batches for a vision tower.

use std::borrow::Borrow;

use burn::tensor::{DType, Device, Tensor, TensorData};
use idefics_processor::image::ImageTile;
use idefics_vision::{PatchGrid, plan_batches};

use crate::VisionBatch;
use crate::inputs::InputError;

/// Images with the same patch grid, which are encoded together.
#[derive(Debug)]
pub struct ImageBatch<'i> {
    /// Indices of these images in the prompt's list of images.
    pub image_indices: Vec<usize>,
    /// The patch grid of every image.
    pub grid: PatchGrid,
    /// The images, in the order of `image_indices`.
    pub images: Vec<&'i ImageTile>,
    /// Height and width, in pixels, of the area covered by complete patches; the remainder is cropped.
    height: usize,
    width: usize,
}

impl ImageBatch<'_> {
    /// Uploads the pixels, `[n_images, 3, height, width]` in f32.
    pub fn upload(&self, device: &Device) -> Tensor<4> {
        Tensor::from_data(self.pixel_values(), (device, DType::F32))
    }

    /// The pixels of the whole patches, `[n_images, 3, height, width]` in f32.
    pub fn pixel_values(&self) -> TensorData {
        let shape = [self.images.len(), 3, self.height, self.width];
        let mut pixel_values = Vec::with_capacity(shape.iter().product());
        for image in &self.images {
            for channel in image.pixels().chunks_exact(image.height() * image.width()) {
                for row in channel.chunks_exact(image.width()).take(self.height) {
                    pixel_values.extend_from_slice(&row[..self.width]);
                }
            }
        }
        TensorData::new(pixel_values, shape)
    }
}

/// The images without duplicates, and for each of `images` its index among them.
pub(crate) fn distinct(images: &[ImageTile]) -> (Vec<&ImageTile>, Vec<usize>) {
    let mut distinct: Vec<&ImageTile> = Vec::new();
    let mut place = Vec::with_capacity(images.len());
    for image in images {
        // Rows with the same image are mostly adjacent, so search from the end.
        let known = distinct.iter().rposition(|known| *known == image);
        place.push(known.unwrap_or(distinct.len()));
        if known.is_none() {
            distinct.push(image);
        }
    }
    (distinct, place)
}

/// Reorders image vectors: returns `[n_places, n_vectors, d]`, where `places[i]` is the index of the image at
/// place `i`.
///
/// # Shapes
/// - `image_hidden_states`: `[n_images, n_vectors, d]`
pub(crate) fn arrange(image_hidden_states: Tensor<3>, places: &[usize]) -> Tensor<3> {
    if places.iter().copied().eq(0..image_hidden_states.dims()[0]) {
        return image_hidden_states;
    }
    let places: Vec<i32> = places.iter().map(|&place| place as i32).collect();
    let options = (&image_hidden_states.device(), DType::I32);
    image_hidden_states.select(0, Tensor::from_data(TensorData::from(places.as_slice()), options))
}

/// Concatenates the vectors of the batches, each `[n_images, n_vectors, d]`, in the order of the images; `None` if
/// there are none.
pub(crate) fn in_order(batches: &[ImageBatch<'_>], image_hidden_states: Vec<Tensor<3>>) -> Option<Tensor<3>> {
    if image_hidden_states.is_empty() {
        return None;
    }
    let image_hidden_states = Tensor::cat(image_hidden_states, 0); // [n_images, n_vectors, d], batch by batch
    let mut places = vec![0; image_hidden_states.dims()[0]];
    let encoded = batches.iter().flat_map(|batch| &batch.image_indices);
    for (row, &image_idx) in encoded.enumerate() {
        places[image_idx] = row;
    }
    Some(arrange(image_hidden_states, &places))
}

/// Groups the images of a prompt into batches with the same patch grid, so that nothing is computed on padding.
/// Patches are `patch_size` pixels wide and high, and need `bytes_per_patch` of activations each.
///
/// # Errors
/// [`InputError::Patches`] if an image is smaller than a patch, or has too many patches.
pub fn image_batches<'i>(
    images: &'i [impl Borrow<ImageTile>],
    patch_size: usize,
    bytes_per_patch: usize,
    vision_batch: VisionBatch,
) -> Result<Vec<ImageBatch<'i>>, InputError> {
    let grids = images
        .iter()
        .enumerate()
        .map(|(image_idx, image)| {
            let image = image.borrow();
            PatchGrid::whole_patches(image.height(), image.width(), patch_size)
                .map_err(|source| InputError::Patches { image_idx, source })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let image_bytes = |grid: PatchGrid| (grid.patches() * bytes_per_patch) as u64;
    let planned = plan_batches(&grids, |grid| vision_batch.images(image_bytes(grid)));
    let batches = planned.into_iter().map(|image_indices| {
        let grid = grids[image_indices[0]];
        let images = image_indices.iter().map(|&image_idx| images[image_idx].borrow()).collect();
        ImageBatch { image_indices, grid, images, height: grid.rows * patch_size, width: grid.cols * patch_size }
    });
    Ok(batches.collect())
}
