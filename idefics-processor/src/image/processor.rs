//! The image processor: cuts and resizes pictures by the rules of the family, rescales, normalises and pads them.
//!
//! Source: `Idefics2ImageProcessorPil` and `IdeficsImageProcessorPil` of transformers 5.23 with Pillow 12.

use idefics_image::{ResizeTarget, load_resized, resize_view};
use rayon::prelude::*;

use crate::families::{FamilyRules, TileGrid};
use crate::image::{
    DecodeOptions, ImageConfigError, ImageProcessorConfig, ImageSource, ImageTile, PadError, PaddedImages, ReadOptions,
    RgbImage, TileError, pad_batch,
};

/// Turns pictures into the tiles that the vision tower reads.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    family: &'static dyn FamilyRules,
    config: ImageProcessorConfig,
    /// Lookup table of normalised values, `[3, 256]`, indexed by channel and 8-bit value.
    values: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// Creates an image processor with the rules of `family`.
    ///
    /// # Errors
    /// The errors of [`ImageProcessorConfig::validate`].
    pub fn new(family: &'static dyn FamilyRules, config: ImageProcessorConfig) -> Result<Self, ImageConfigError> {
        config.validate()?;
        let values = Box::new(std::array::from_fn(|channel| {
            std::array::from_fn(|value| normalized_value(&config, channel, value as u8))
        }));
        Ok(Self { family, config, values })
    }

    /// Returns the configuration of this processor.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// Returns the tiles that a picture of `width` × `height` pixels is cut into.
    ///
    /// # Panics
    /// If `width` or `height` is 0.
    pub fn layout(&self, width: u32, height: u32) -> TileGrid {
        assert!(width > 0 && height > 0, "width and height must be at least 1 pixel");
        self.family.layout(width, height, &self.config)
    }

    /// Returns the tiles of one picture, in the order of [`Self::layout`].
    pub fn process(&self, image: &RgbImage) -> Vec<ImageTile> {
        let grid = self.layout(image.width(), image.height());
        match grid.resizes.split_first() {
            None => self.cut(image, &grid),
            Some((first, rest)) => self.cut(&resize_whole(resized(image, *first), rest), &grid),
        }
    }

    /// Cuts the tiles of `grid` out of `image`, which has already been resized as `grid.resizes` says.
    fn cut(&self, image: &RgbImage, grid: &TileGrid) -> Vec<ImageTile> {
        let tile = |target: &ResizeTarget| self.tile(*target, target.has_pixels().then(|| resized(image, *target)));
        grid.tiles.par_iter().map(tile).collect()
    }

    /// Reads and decodes an image. Returns its grid, as [`Self::layout`] does, and its tiles, as [`Self::process`]
    /// does. If the format can be decoded row by row, only the rows that resizing needs are kept in memory.
    ///
    /// # Errors
    /// [`TileError::Image`] if [`load_resized`] fails; [`TileError::TooMany`] for a picture that would become more than
    /// `max_tiles` tiles.
    pub fn load(
        &self,
        source: &ImageSource,
        read: &ReadOptions,
        decoding: DecodeOptions,
        max_tiles: u64,
    ) -> Result<(TileGrid, Vec<ImageTile>), TileError> {
        let mut grid = Ok(TileGrid::new(0, 0, Vec::new()));
        let plan = |width, height| {
            let tiles = self.family.n_tiles(width, height, &self.config);
            if tiles > max_tiles {
                grid = Err(TileError::TooMany { width, height, tiles, limit: max_tiles });
                return Vec::new();
            }
            let planned = self.layout(width, height);
            let targets = match planned.resizes.first() {
                Some(first) => vec![*first],
                None => planned.tiles.iter().copied().filter(ResizeTarget::has_pixels).collect(),
            };
            grid = Ok(planned);
            targets
        };
        let mut pictures = load_resized(source, read, decoding, plan)?.into_iter();
        let grid = grid?;
        if let Some((_, rest)) = grid.resizes.split_first()
            && let Some(first) = pictures.next()
        {
            let tiles = self.cut(&resize_whole(first, rest), &grid);
            return Ok((grid, tiles));
        }
        let with_pictures: Vec<(ResizeTarget, Option<RgbImage>)> = grid
            .tiles
            .iter()
            .map(|&target| (target, if target.has_pixels() { pictures.next() } else { None }))
            .collect();
        let tiles = with_pictures.into_par_iter().map(|(target, picture)| self.tile(target, picture)).collect();
        Ok((grid, tiles))
    }

    /// Processes a batch, which has one `Vec` of pictures per row. Returns one flat `Vec` of tiles per row.
    pub fn process_all(&self, batch: &[Vec<RgbImage>]) -> Vec<Vec<ImageTile>> {
        let row = |images: &Vec<RgbImage>| images.par_iter().flat_map(|image| self.process(image)).collect();
        batch.par_iter().map(row).collect()
    }

    /// Packs a batch of tiles into one array, padded to the size of the largest tile.
    ///
    /// # Errors
    /// [`PadError::Unequal`] if `do_pad` is off but the tiles differ in size or number.
    pub fn pad(&self, batch: &[Vec<ImageTile>]) -> Result<PaddedImages, PadError> {
        if !self.config.do_pad {
            check_equal(batch)?;
        }
        Ok(pad_batch(batch))
    }

    /// Normalises a resized picture to a tile, `[3, height, width]`. If `resized` is `None`, because the target's
    /// rectangle is empty, the tile is black.
    fn tile(&self, target: ResizeTarget, resized: Option<RgbImage>) -> ImageTile {
        let (width, height) = (target.width as usize, target.height as usize);
        let Some(resized) = resized else {
            let pixels = self.values.iter().flat_map(|values| std::iter::repeat_n(values[0], width * height)).collect();
            return ImageTile::new(width, height, pixels).expect("pixels has 3 planes of width x height values");
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
        ImageTile::new(width, height, pixels).expect("pixels has 3 planes of width x height values")
    }
}

/// Cuts the rectangle of one target out of a picture and resizes it.
fn resized(image: &RgbImage, ResizeTarget { crop, width, height, filter }: ResizeTarget) -> RgbImage {
    let [left, top, right, bottom] = [crop.left, crop.top, crop.right, crop.bottom].map(|side| side as usize);
    resize_view(image.view().crop(left, top, right, bottom), width, height, filter)
}

/// Applies `resizes` to a picture, one after another.
fn resize_whole(image: RgbImage, resizes: &[ResizeTarget]) -> RgbImage {
    resizes.iter().fold(image, |image, &target| resized(&image, target))
}

/// Rescales in f64, rounds to f32, and normalises in f32, as NumPy does with the reference's arrays.
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
    let expected_size = first.first().map(size).unwrap_or_default();
    for (row, tiles) in batch.iter().enumerate() {
        let sizes: Vec<String> = tiles.iter().map(size).collect();
        if tiles.len() != first.len() || sizes.iter().any(|found| *found != expected_size) {
            let expected = format!("{} images of {expected_size} pixels", first.len());
            let found = format!("{} images of {} pixels", sizes.len(), sizes.join(", "));
            return Err(PadError::Unequal { row, expected, found });
        }
    }
    Ok(())
}
