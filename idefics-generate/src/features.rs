//! Batches of image tiles for a vision tower, and the image vectors that are computed from them.

use std::borrow::Borrow;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
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
    /// Uploads the pixels of all complete patches, `[n_images, 3, height, width]` in f32.
    pub fn upload(&self, device: &Device) -> Tensor<4> {
        Tensor::from_data(self.pixel_values(), (device, DType::F32))
    }

    /// Returns the pixels of all complete patches, `[n_images, 3, height, width]` in f32.
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

/// Returns the distinct images and, for each entry of `images`, the index of the distinct image that equals it.
pub(crate) fn distinct(images: &[ImageTile]) -> (Vec<&ImageTile>, Vec<usize>) {
    let mut distinct: Vec<&ImageTile> = Vec::new();
    let mut place = Vec::with_capacity(images.len());
    for image in images {
        // Equal images are usually close together, so the search starts at the end.
        let known = distinct.iter().rposition(|known| *known == image);
        place.push(known.unwrap_or(distinct.len()));
        if known.is_none() {
            distinct.push(image);
        }
    }
    (distinct, place)
}

/// The image vectors of several images, in the order of the images. Images may have different numbers of vectors.
#[derive(Debug, Clone)]
pub struct ImageVectors {
    /// The vectors of one image after another, `[sum of counts, d_image]`.
    vectors: Tensor<2>,
    /// Number of vectors of each image.
    counts: Vec<usize>,
}

/// Converts images with the same number of vectors, `[n_images, n_vectors, d_image]`.
impl From<Tensor<3>> for ImageVectors {
    fn from(image_hidden_states: Tensor<3>) -> Self {
        let [n_images, n_vectors, _] = image_hidden_states.dims();
        Self { vectors: image_hidden_states.flatten(0, 1), counts: vec![n_vectors; n_images] }
    }
}

impl ImageVectors {
    /// Returns the number of images.
    pub fn n_images(&self) -> usize {
        self.counts.len()
    }

    /// Returns the number of vectors of each image.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// Returns the vectors of one image after another, `[sum of counts, d_image]`.
    pub fn into_rows(self) -> Tensor<2> {
        self.vectors
    }

    /// Returns a view of each image's vectors, `[n_vectors, d_image]`.
    pub fn images(&self) -> impl Iterator<Item = Tensor<2>> {
        self.starts()
            .into_iter()
            .zip(&self.counts)
            .map(|(start, &n_vectors)| self.vectors.clone().narrow(0, start, n_vectors))
    }

    /// Returns all images as `[n_images, n_vectors, d_image]`, or `None` if they have different numbers of vectors or
    /// there is no image.
    pub fn into_equal(self) -> Option<Tensor<3>> {
        let n_vectors = *self.counts.first()?;
        let [_, d_image] = self.vectors.dims();
        let is_equal = self.counts.iter().all(|&count| count == n_vectors);
        is_equal.then(|| self.vectors.reshape([self.counts.len(), n_vectors, d_image]))
    }

    /// Joins the vectors of images, each `[n_vectors, d_image]`. Returns `None` if there is no image.
    pub(crate) fn of_images(images: Vec<Tensor<2>>) -> Option<Self> {
        let counts = images.iter().map(|image| image.dims()[0]).collect();
        Some(Self { vectors: joined(images)?, counts })
    }

    /// Copies the vectors of one image, `[n_vectors, d_image]`, so that they share no memory with other images.
    pub(crate) fn copied(&self, image: usize) -> Tensor<2> {
        self.vectors.clone().select(0, self.rows_of(&[image]))
    }

    /// Reorders or repeats images: image `i` of the result is image `places[i]` of `self`.
    #[must_use]
    pub fn arrange(self, places: &[usize]) -> Self {
        if places.iter().copied().eq(0..self.counts.len()) {
            return self;
        }
        let rows = self.rows_of(places);
        Self { vectors: self.vectors.select(0, rows), counts: places.iter().map(|&image| self.counts[image]).collect() }
    }

    /// Returns the indices of the vectors of `images`, one image after another.
    fn rows_of(&self, images: &[usize]) -> Tensor<1, Int> {
        let starts = self.starts();
        let rows = images.iter().flat_map(|&image| starts[image]..starts[image] + self.counts[image]);
        let rows: Vec<i32> = rows.map(|row| row as i32).collect();
        Tensor::from_data(TensorData::from(rows.as_slice()), (&self.vectors.device(), DType::I32))
    }

    /// Returns the index of each image's first vector.
    fn starts(&self) -> Vec<usize> {
        let ends = self.counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        });
        ends.zip(&self.counts).map(|(end, count)| end - count).collect()
    }
}

/// Returns, for each image of the prompt, its index after the results of all batches are joined one after another.
pub fn rows_of_images(batches: &[ImageBatch<'_>]) -> Vec<usize> {
    let mut rows = vec![0; batches.iter().map(|batch| batch.image_indices.len()).sum()];
    let encoded = batches.iter().flat_map(|batch| &batch.image_indices);
    for (row, &image_idx) in encoded.enumerate() {
        rows[image_idx] = row;
    }
    rows
}

/// Joins the vectors of all batches, each `[n_images, n_vectors, d_image]`, and puts the images into the order of the
/// prompt. Returns `None` if there are no images.
pub(crate) fn in_order(batches: &[ImageBatch<'_>], image_hidden_states: Vec<Tensor<3>>) -> Option<ImageVectors> {
    let parts: Vec<ImageVectors> = image_hidden_states.into_iter().map(ImageVectors::from).collect();
    let counts = parts.iter().flat_map(|part| part.counts.iter().copied()).collect();
    let vectors = joined(parts.into_iter().map(ImageVectors::into_rows).collect())?;
    let encoded = ImageVectors { vectors, counts }; // ordered by batch
    Some(encoded.arrange(&rows_of_images(batches)))
}

/// Concatenates the rows of all parts. A single part is not copied.
fn joined(mut parts: Vec<Tensor<2>>) -> Option<Tensor<2>> {
    if parts.len() > 1 { Some(Tensor::cat(parts, 0)) } else { parts.pop() }
}

/// Groups the images of a prompt into batches with the same patch grid, so that no image has to be padded. A patch is
/// `patch_size` pixels wide and high, and needs `bytes_per_patch` bytes of activations.
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
