//! Packs tiles of different sizes into one zero-padded array, and unpacks them.

use rayon::prelude::*;

use crate::image::PadError;

/// One input picture of the vision tower: normalised values, channels first. The number of values always matches the
/// size.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageTile {
    width: usize,
    height: usize,
    pixels: Vec<f32>,
}

impl ImageTile {
    /// Creates a tile from normalised values, `[3, height, width]`.
    ///
    /// # Errors
    /// [`PadError::Length`] if the number of values does not match the size.
    pub fn new(width: usize, height: usize, pixels: Vec<f32>) -> Result<Self, PadError> {
        check_length("a tile", &[3, height, width], pixels.len())?;
        Ok(Self { width, height, pixels })
    }

    /// Returns the width, in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height, in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the normalised values, `[3, height, width]`.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// Returns the normalised values, `[3, height, width]`, for changing them in place.
    pub fn pixels_mut(&mut self) -> &mut [f32] {
        &mut self.pixels
    }
}

/// A batch of tiles in the reference's layout: each tile is at the top left of its slot, with zeros elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct PaddedImages {
    /// Number of rows in the batch.
    pub batch: usize,
    /// Number of image slots per row: the largest number of tiles in a row.
    pub n_images: usize,
    /// Height of a slot, in pixels: the height of the tallest tile.
    pub height: usize,
    /// Width of a slot, in pixels: the width of the widest tile.
    pub width: usize,
    /// `[batch, n_images, 3, height, width]`: normalised values, 0.0 for padding.
    pub pixel_values: Vec<f32>,
    /// `[batch, n_images, height, width]`: 1 for pixels of a picture, 0 for padding.
    pub pixel_attention_mask: Vec<i64>,
}

/// Packs a batch, with one `Vec` of tiles per row, into one zero-padded array.
///
/// Source: the `do_pad` part of `Idefics2ImageProcessorPil._preprocess`.
pub fn pad_batch(batch: &[Vec<ImageTile>]) -> PaddedImages {
    let n_images = batch.iter().map(Vec::len).max().unwrap_or(0);
    let height = batch.iter().flatten().map(|tile| tile.height).max().unwrap_or(0);
    let width = batch.iter().flatten().map(|tile| tile.width).max().unwrap_or(0);
    let plane = height * width;

    let mut padded = PaddedImages {
        batch: batch.len(),
        n_images,
        height,
        width,
        pixel_values: vec![0.0; batch.len() * n_images * 3 * plane],
        pixel_attention_mask: vec![0; batch.len() * n_images * plane],
    };
    if plane == 0 {
        return padded;
    }
    let slots = padded.pixel_values.par_chunks_exact_mut(3 * plane);
    let masks = padded.pixel_attention_mask.par_chunks_exact_mut(plane);
    slots.zip(masks).enumerate().for_each(|(slot, (values, mask))| {
        let Some(tile) = batch[slot / n_images].get(slot % n_images) else { return };
        let tile_plane = tile.height * tile.width;
        if tile_plane == 0 {
            return;
        }
        for (channel, pixels) in values.chunks_exact_mut(plane).zip(tile.pixels.chunks_exact(tile_plane)) {
            for (out, row) in channel.chunks_exact_mut(width).zip(pixels.chunks_exact(tile.width)) {
                out[..tile.width].copy_from_slice(row);
            }
        }
        for out in mask.chunks_exact_mut(width).take(tile.height) {
            out[..tile.width].fill(1);
        }
    });
    padded
}

impl PaddedImages {
    /// Returns the shape of `pixel_values`: `[batch, n_images, 3, height, width]`.
    pub fn pixel_values_shape(&self) -> [usize; 5] {
        [self.batch, self.n_images, 3, self.height, self.width]
    }

    /// Returns the shape of `pixel_attention_mask`: `[batch, n_images, height, width]`.
    pub fn pixel_attention_mask_shape(&self) -> [usize; 4] {
        [self.batch, self.n_images, self.height, self.width]
    }

    /// Returns the tiles without their padding, with one `Vec` per row. This is the inverse of [`pad_batch`].
    ///
    /// A slot with only zeros is padding and is left out, as in the reference model. Every other slot is cropped to
    /// the rectangle that its mask marks.
    ///
    /// # Errors
    /// [`PadError::Length`] if the length of an array does not match its shape. [`PadError::Mask`] if a mask is not a
    /// rectangle of ones at the top left with zeros elsewhere.
    pub fn tiles(&self) -> Result<Vec<Vec<ImageTile>>, PadError> {
        check_length("pixel_values", &self.pixel_values_shape(), self.pixel_values.len())?;
        check_length("pixel_attention_mask", &self.pixel_attention_mask_shape(), self.pixel_attention_mask.len())?;
        let plane = self.height * self.width;
        let tile_at = |row: usize, image: usize| {
            let slot = row * self.n_images + image;
            let values = &self.pixel_values[slot * 3 * plane..][..3 * plane];
            if values.iter().all(|&value| value == 0.0) {
                return Ok(None);
            }
            let mask = &self.pixel_attention_mask[slot * plane..][..plane];
            let (height, width) = marked_rectangle(mask, self.width).ok_or(PadError::Mask { row, image })?;
            let rows = values.chunks_exact(plane).flat_map(|channel| channel.chunks_exact(self.width).take(height));
            let pixels = rows.flat_map(|line| &line[..width]).copied().collect();
            Ok(Some(ImageTile { width, height, pixels }))
        };
        (0..self.batch)
            .map(|row| (0..self.n_images).filter_map(|image| tile_at(row, image).transpose()).collect())
            .collect()
    }
}

fn check_length(name: &'static str, shape: &[usize], actual: usize) -> Result<(), PadError> {
    let expected = shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side)).unwrap_or(usize::MAX);
    if actual == expected {
        return Ok(());
    }
    Err(PadError::Length { name, shape: shape.to_vec(), expected, actual })
}

/// Returns the height and width of the rectangle of ones at the top left of `mask`. Returns `None` if the mask has no
/// ones, or anything but zeros outside that rectangle. `stride` is the width of the mask.
fn marked_rectangle(mask: &[i64], stride: usize) -> Option<(usize, usize)> {
    let width = mask.iter().take(stride).take_while(|&&value| value == 1).count();
    let height = mask.chunks_exact(stride).take_while(|line| line[0] == 1).count();
    let is_rectangle = mask.chunks_exact(stride).enumerate().all(|(y, line)| {
        let marked = if y < height { width } else { 0 };
        line[..marked].iter().all(|&value| value == 1) && line[marked..].iter().all(|&value| value == 0)
    });
    (width > 0 && is_rectangle).then_some((height, width))
}
