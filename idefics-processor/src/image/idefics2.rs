//! Idefics2's image processor: split, resize, rescale, normalize, pad.
//!
//! Source: `Idefics2ImageProcessorPil` of transformers 5.23 with Pillow 12.

use idefics_image::{Crop, ResizeTarget, load_resized, resize_view};
use rayon::prelude::*;

use crate::image::{
    DecodeOptions, ImageConfigError, ImageError, ImageProcessorConfig, ImageSize, ImageSource, ImageTile, PadError,
    PaddedImages, ReadOptions, RgbImage, pad_batch,
};

/// Turns pictures into the tiles that Idefics2 reads.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
    /// The normalized value of every channel and 8-bit value, `[3, 256]`.
    values: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// Checks the configuration and prepares its arithmetic.
    ///
    /// # Errors
    /// [`ImageConfigError::Field`] from [`ImageProcessorConfig::validate`].
    pub fn new(config: ImageProcessorConfig) -> Result<Self, ImageConfigError> {
        config.validate()?;
        let values = Box::new(std::array::from_fn(|channel| {
            std::array::from_fn(|value| normalized_value(&config, channel, value as u8))
        }));
        Ok(Self { config, values })
    }

    /// The configuration in force.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// How many tiles an image becomes: 5 with splitting, else 1.
    pub fn tiles_per_image(&self) -> usize {
        if self.config.do_image_splitting { 5 } else { 1 }
    }

    /// Width and height in pixels of the tiles of a `width` × `height` image, in the order of [`Self::process`].
    ///
    /// # Panics
    /// If a side is 0.
    pub fn tile_sizes(&self, width: u32, height: u32) -> Vec<(u32, u32)> {
        assert!(width > 0 && height > 0, "an image has sides of at least one pixel");
        self.targets(width, height).iter().map(|target| (target.width, target.height)).collect()
    }

    /// The tiles of one picture. With `do_image_splitting`: the quarters top left, top right, bottom left, bottom
    /// right, cut at half the height and width (rounded down) before resizing, then the whole; without, the whole.
    ///
    /// A side of a single pixel has no first half: a quarter without pixels becomes a black tile, as in the reference
    /// where the width is 1 (it divides by zero where the height is). Without `do_resize`, where such a tile would have
    /// no size either, both halves are that pixel.
    pub fn process(&self, image: &RgbImage) -> Vec<ImageTile> {
        let view = image.view();
        let resize = |ResizeTarget { crop, width, height, filter }: ResizeTarget| {
            let [left, top, right, bottom] = [crop.left, crop.top, crop.right, crop.bottom].map(|side| side as usize);
            resize_view(view.crop(left, top, right, bottom), width, height, filter)
        };
        let targets = self.targets(image.width(), image.height());
        targets.into_par_iter().map(|target| self.tile(target, target.has_pixels().then(|| resize(target)))).collect()
    }

    /// [`Self::process`] of an image that is read and decoded first. Where its format gives rows one after another, no more
    /// of the picture is kept at a time than resizing needs.
    ///
    /// # Errors
    /// As [`load_resized`].
    pub fn load(
        &self,
        source: &ImageSource,
        read: &ReadOptions,
        decoding: DecodeOptions,
    ) -> Result<Vec<ImageTile>, ImageError> {
        let mut targets = Vec::new();
        let plan = |width, height| {
            targets = self.targets(width, height);
            targets.iter().copied().filter(ResizeTarget::has_pixels).collect()
        };
        let mut pictures = load_resized(source, read, decoding, plan)?.into_iter();
        let with_pictures: Vec<(ResizeTarget, Option<RgbImage>)> = targets
            .into_iter()
            .map(|target| (target, if target.has_pixels() { pictures.next() } else { None }))
            .collect();
        Ok(with_pictures.into_par_iter().map(|(target, picture)| self.tile(target, picture)).collect())
    }

    /// [`Self::process`] for a batch, one `Vec` of pictures a row; the tiles of a row follow one another.
    pub fn process_all(&self, batch: &[Vec<RgbImage>]) -> Vec<Vec<ImageTile>> {
        let row = |images: &Vec<RgbImage>| images.par_iter().flat_map(|image| self.process(image)).collect();
        batch.par_iter().map(row).collect()
    }

    /// Packs a batch of tiles into one array, padded where `do_pad` allows it.
    ///
    /// # Errors
    /// [`PadError::Unequal`] if `do_pad` is off and the tiles differ in size or number.
    pub fn pad(&self, batch: &[Vec<ImageTile>]) -> Result<PaddedImages, PadError> {
        if !self.config.do_pad {
            check_equal(batch)?;
        }
        Ok(pad_batch(batch))
    }

    /// The resized picture as the model reads it: `[3, height, width]`. A quarter without pixels is black.
    fn tile(&self, target: ResizeTarget, resized: Option<RgbImage>) -> ImageTile {
        let (width, height) = (target.width as usize, target.height as usize);
        let Some(resized) = resized else {
            let pixels = self.values.iter().flat_map(|values| std::iter::repeat_n(values[0], width * height)).collect();
            return ImageTile::new(width, height, pixels).expect("a plane was made for each channel");
        };
        let mut pixels = vec![0.0; 3 * width * height];
        let (red, rest) = pixels.split_at_mut(width * height);
        let (green, blue) = rest.split_at_mut(width * height);
        let rows = resized.data().par_chunks_exact(3 * width).with_min_len(16);
        let planes =
            (red.par_chunks_exact_mut(width), green.par_chunks_exact_mut(width), blue.par_chunks_exact_mut(width));
        let [red_values, green_values, blue_values] = &*self.values;
        (rows, planes.0, planes.1, planes.2).into_par_iter().for_each(|(row, red, green, blue)| {
            for (((pixel, red), green), blue) in row.chunks_exact(3).zip(red).zip(green).zip(blue) {
                *red = red_values[usize::from(pixel[0])];
                *green = green_values[usize::from(pixel[1])];
                *blue = blue_values[usize::from(pixel[2])];
            }
        });
        ImageTile::new(width, height, pixels).expect("a plane was made for each channel")
    }

    fn output_size(&self, width: u32, height: u32) -> (u32, u32) {
        match self.config.size {
            _ if !self.config.do_resize => (width, height),
            ImageSize::Exact { height, width } => (width, height),
            ImageSize::Edges { shortest_edge, longest_edge } => edges_size(width, height, shortest_edge, longest_edge),
        }
    }

    /// What becomes a tile, in order: rectangles of the picture, and the size that each is brought to.
    fn targets(&self, width: u32, height: u32) -> Vec<ResizeTarget> {
        let target = |crop: Crop| {
            let (width, height) = self.output_size(crop.width(), crop.height());
            ResizeTarget { crop, width, height, filter: self.config.resample }
        };
        let whole = target(Crop::whole(width, height));
        if !self.config.do_image_splitting {
            return vec![whole];
        }
        let least = u32::from(!self.config.do_resize);
        let halves = |side: u32| {
            let middle = side / 2;
            [(0, middle.max(least)), (middle, side)]
        };
        let mut targets = Vec::with_capacity(5);
        for (top, bottom) in halves(height) {
            for (left, right) in halves(width) {
                targets.push(target(Crop { left, top, right, bottom }));
            }
        }
        targets.push(whole);
        targets
    }
}

/// Width and height after the size rule: the longer side down to `longest_edge` with the aspect kept, then each side
/// up to `shortest_edge` without it. All in pixels.
///
/// `longest_edge` may be below `shortest_edge`: then the second rule undoes the first where they contradict each other.
/// A side of 0 pixels, which a quarter of a picture can have, becomes `shortest_edge`.
///
/// Source: `get_resize_output_image_size` of `image_processing_pil_idefics2.py`, f64 arithmetic and truncation included.
pub fn edges_size(width: u32, height: u32, shortest_edge: u32, longest_edge: u32) -> (u32, u32) {
    let aspect_ratio = f64::from(width) / f64::from(height);
    let (mut new_width, mut new_height) = (width, height);
    if width >= height && width > longest_edge {
        new_width = longest_edge;
        new_height = (f64::from(longest_edge) / aspect_ratio) as u32;
    } else if height > width && height > longest_edge {
        new_height = longest_edge;
        new_width = (f64::from(longest_edge) * aspect_ratio) as u32;
    }
    (new_width.max(shortest_edge), new_height.max(shortest_edge))
}

/// Rescaling in f64, rounded to f32, then normalizing in f32, as numpy does it on the reference's arrays.
fn normalized_value(config: &ImageProcessorConfig, channel: usize, value: u8) -> f32 {
    let rescaled = if config.do_rescale { (f64::from(value) * config.rescale_factor) as f32 } else { f32::from(value) };
    if !config.do_normalize {
        return rescaled;
    }
    (rescaled - config.image_mean[channel] as f32) / config.image_std[channel] as f32
}

fn check_equal(batch: &[Vec<ImageTile>]) -> Result<(), PadError> {
    let size = |tile: &ImageTile| format!("{}x{}", tile.width(), tile.height());
    let Some(first) = batch.first() else { return Ok(()) };
    let of_all = first.first().map(size).unwrap_or_default();
    for (row, tiles) in batch.iter().enumerate() {
        let sizes: Vec<String> = tiles.iter().map(size).collect();
        if tiles.len() != first.len() || sizes.iter().any(|found| *found != of_all) {
            let expected = format!("{} images of {of_all} pixels", first.len());
            let found = format!("{} images of {} pixels", sizes.len(), sizes.join(", "));
            return Err(PadError::Unequal { row, expected, found });
        }
    }
    Ok(())
}
