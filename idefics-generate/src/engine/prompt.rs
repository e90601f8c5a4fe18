//! A prompt with its images, and what the scheduler must know of it.

use std::ops::Range;

use idefics_processor::image::ImageTile;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::scheduler::{ImageShape, PromptShape, chunk_keys};
use crate::feature_cache::{ImageKey, image_key};
use crate::{InputError, Model, Prompts, VisionBatch};

/// A prompt that is ready for the model: token ids and image tiles.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// A single row without padding.
    pub(super) tokens: Prompts,
    pub(super) images: Vec<PromptImage>,
    /// Number of padding slots that are counted in lengths such as `max_length`, as in a batch of the reference.
    pub(super) padding: usize,
    /// Index of the prompt in its batch. It is passed to the logits processors.
    pub(super) sample: usize,
    image_token_id: u32,
}

/// A tile of an image in a prompt.
#[derive(Debug, Clone)]
pub(super) struct PromptImage {
    pub(super) tile: ImageTile,
    pub(super) key: ImageKey,
    /// Positions from the tile's first image token to its last one; empty for cross-attention.
    pub(super) tokens: Range<usize>,
}

impl Prompt {
    /// Takes row `sample` of a batch. Lengths such as `max_length` count the padding of the row, as in the reference.
    ///
    /// `images` are the tiles of the row, and `tile_tokens` has the number of image tokens of each tile. The latter is
    /// not used if the batch says which images each token attends to ([`Prompts::seen_images`]).
    ///
    /// # Errors
    /// [`InputError::ImageTokenCount`] or [`InputError::ImageCount`] if the images do not match the row.
    ///
    /// # Panics
    /// If the batch has no such row.
    pub fn of_row(
        batch: &Prompts,
        sample: usize,
        images: Vec<ImageTile>,
        tile_tokens: &[usize],
        image_token_id: u32,
    ) -> Result<Self, InputError> {
        let tokens = batch.row_alone(sample);
        let places = match tokens.seen_images() {
            Some(seen) => {
                check_count(seen.n_images()[0], images.len())?;
                vec![0..0; images.len()]
            }
            None => {
                check_count(tile_tokens.len(), images.len())?;
                places(tokens.row(0), tile_tokens, image_token_id)?
            }
        };
        let keys: Vec<ImageKey> = images.par_iter().map(image_key).collect();
        let image = |((tile, key), tokens)| PromptImage { tile, key, tokens };
        let images = images.into_iter().zip(keys).zip(places).map(image).collect();
        Ok(Self { padding: batch.left_padding()[sample], tokens, images, sample, image_token_id })
    }

    /// Returns the token ids.
    pub fn ids(&self) -> &[u32] {
        self.tokens.row(0)
    }

    /// Returns the number of image tokens.
    pub fn image_tokens(&self) -> usize {
        self.ids().iter().filter(|&&id| id == self.image_token_id).count()
    }

    /// Whether the images are a context of cross-attention, and not part of the token sequence.
    pub(super) fn has_context(&self) -> bool {
        self.tokens.seen_images().is_some()
    }

    /// Returns the sizes and keys that the scheduler needs. Prompts share chunks only if they have the same `salt`;
    /// without a salt, nothing is shared.
    ///
    /// # Errors
    /// [`InputError::Patches`] if an image cannot be split into patches.
    pub(super) fn shape(
        &self,
        model: &dyn Model,
        salt: Option<&[u8]>,
        chunk_tokens: usize,
    ) -> Result<PromptShape, InputError> {
        let patches = |image: &PromptImage| {
            let tiles = [&image.tile];
            let batches = model.shape().image_batches(&tiles, VisionBatch::default())?;
            Ok(batches.first().map_or(0, |batch| batch.grid.patches() as u32))
        };
        let images = self.images.iter().enumerate().map(|(index, image)| {
            let patches = patches(image).map_err(|error: InputError| error.at_image(index))?;
            let needed_until = if self.has_context() { u32::MAX } else { image.tokens.end as u32 };
            Ok(ImageShape { needed_until, patches })
        });
        Ok(PromptShape {
            tokens: self.ids().len() as u32,
            images: images.collect::<Result<_, InputError>>()?,
            keys: salt.map_or_else(Vec::new, |salt| {
                let places: Vec<(u32, ImageKey)> =
                    self.images.iter().map(|image| (image.tokens.start as u32, image.key)).collect();
                chunk_keys(&self.salted(salt, model), self.ids(), &places, chunk_tokens as u32)
            }),
        })
    }

    /// Adds to the salt everything that the keys and values of a chunk depend on, except the tokens and images up to
    /// the end of the chunk.
    fn salted(&self, salt: &[u8], model: &dyn Model) -> Vec<u8> {
        let mut digest = Sha256::new();
        digest.update(salt);
        if model.decoder().position_rules().depends_on_length() {
            digest.update((self.ids().len() as u64).to_le_bytes());
        }
        if let Some(seen) = self.tokens.seen_images() {
            // The keys and values of all images are computed together, and rounding depends on their number.
            self.images.iter().for_each(|image| digest.update(image.key));
            digest.update(seen.view().seen().iter().map(|&seen| u8::from(seen)).collect::<Vec<_>>());
        }
        digest.finalize().to_vec()
    }
}

fn check_count(shown: usize, images: usize) -> Result<(), InputError> {
    if shown == images { Ok(()) } else { Err(InputError::ImageCount { shown, images }) }
}

/// Returns, for each tile, the positions from its first image token to its last one.
fn places(ids: &[u32], tile_tokens: &[usize], image_token_id: u32) -> Result<Vec<Range<usize>>, InputError> {
    let places: Vec<usize> = (0..ids.len()).filter(|&place| ids[place] == image_token_id).collect();
    let vectors = tile_tokens.iter().sum();
    if places.len() != vectors {
        return Err(InputError::ImageTokenCount { tokens: places.len(), vectors });
    }
    let mut first = 0;
    let of_tile = |&count: &usize| {
        let own = &places[first..first + count];
        first += count;
        own.first().zip(own.last()).map_or(0..0, |(first, last)| *first..last + 1)
    };
    Ok(tile_tokens.iter().map(of_tile).collect())
}
