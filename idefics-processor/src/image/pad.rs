//! Tiles of different sizes packed into one zero-padded array, and taken out of it again.

use rayon::prelude::*;

use crate::image::PadError;

/// One picture as the vision tower reads it: normalized values, channels first. It has as many as its size asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageTile {
    width: usize,
    height: usize,
    pixels: Vec<f32>,
}

impl ImageTile {
    /// A tile of normalized values, `[3, height, width]`.
    ///
    /// # Errors
    /// [`PadError::Length`] if there are more or fewer values.
    pub fn new(width: usize, height: usize, pixels: Vec<f32>) -> Result<Self, PadError> {
        check_length("a tile", &[3, height, width], pixels.len())?;
        Ok(Self { width, height, pixels })
    }

    /// Width, in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height, in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Normalized values, `[3, height, width]`.
    pub fn pixels(&self) -> &[f32] {
        &self.pixels
    }

    /// The same, to be changed.
    pub fn pixels_mut(&mut self) -> &mut [f32] {
        &mut self.pixels
    }
}

/// A batch of tiles in the layout of the reference: every tile at the top left of its slot, zeros elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct PaddedImages {
    /// Rows of the batch.
    pub batch: usize,
    /// Image slots in every row: the largest number of tiles that a row has.
    pub n_images: usize,
    /// Height of a slot, in pixels: that of the tallest tile.
    pub height: usize,
    /// Width of a slot, in pixels: that of the widest tile.
    pub width: usize,
    /// `[batch, n_images, 3, height, width]`, normalized values, 0.0 where there is no picture.
    pub pixel_values: Vec<f32>,
    /// `[batch, n_images, height, width]`, 1 where there is picture.
    pub pixel_attention_mask: Vec<i64>,
}

/// Packs a batch, one `Vec` of tiles a row, into one zero-padded array.
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
    /// Shape of `pixel_values`: `[batch, n_images, 3, height, width]`.
    pub fn pixel_values_shape(&self) -> [usize; 5] {
        [self.batch, self.n_images, 3, self.height, self.width]
    }

    /// Shape of `pixel_attention_mask`: `[batch, n_images, height, width]`.
    pub fn pixel_attention_mask_shape(&self) -> [usize; 4] {
        [self.batch, self.n_images, self.height, self.width]
    }

    /// The tiles without their padding, one `Vec` a row; the inverse of [`pad_batch`].
    ///
    /// A slot whose values are all exactly 0.0 is padding and is left out, as the model does it; every other slot is
    /// cut to the rectangle that its mask marks.
    ///
    /// # Errors
    /// [`PadError::Length`] if an array does not have its shape's length, [`PadError::Mask`] if a mask is not a
    /// rectangle of ones at the top left with zeros around it.
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

/// Height and width of the ones at the top left, if they are a rectangle and all there is.
fn marked_rectangle(mask: &[i64], stride: usize) -> Option<(usize, usize)> {
    let width = mask.iter().take(stride).take_while(|&&value| value == 1).count();
    let height = mask.chunks_exact(stride).take_while(|line| line[0] == 1).count();
    let is_rectangle = mask.chunks_exact(stride).enumerate().all(|(y, line)| {
        let marked = if y < height { width } else { 0 };
        line[..marked].iter().all(|&value| value == 1) && line[marked..].iter().all(|&value| value == 0)
    });
    (width > 0 && is_rectangle).then_some((height, width))
}
