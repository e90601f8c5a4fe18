//! The processor's output: plain numbers, ready for upload to a device.

use crate::families::TileGrid;
use crate::image::{ImageTile, PaddedImages, pad_batch};
use crate::video::SampledVideo;

/// A processed batch before padding, with one entry per row.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ProcessedInputs {
    /// The encoded text of each row, with image placeholders expanded to image tokens.
    pub prompts: Vec<String>,
    /// Token ids of each row, without padding.
    pub input_ids: Vec<Vec<u32>>,
    /// Image tiles and video frames of each row, in the order of the text.
    pub images: Vec<Vec<ImageTile>>,
    /// Number of image tokens of each tile of each row: [`FamilyRules::tile_tokens`](crate::FamilyRules::tile_tokens).
    pub tile_tokens: Vec<Vec<usize>>,
    /// How each image of each row was cut into tiles.
    pub grids: Vec<Vec<TileGrid>>,
    /// The frames of each video of each row.
    pub videos: Vec<Vec<SampledVideo>>,
}

/// The side on which short rows are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PaddingSide {
    /// Before the text, so that all rows end at the same position, as generation needs.
    #[default]
    Left,
    /// After the text.
    Right,
}

/// Token ids of a padded batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenBatch {
    /// `[batch, seq]` in row-major order.
    pub input_ids: Vec<i64>,
    /// `[batch, seq]`: 1 for real tokens, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// Number of rows.
    pub batch: usize,
    /// Number of tokens in the longest row.
    pub seq: usize,
}

impl ProcessedInputs {
    /// Pads all rows with `pad_token_id` to the length of the longest row.
    pub fn padded(&self, pad_token_id: u32, side: PaddingSide) -> TokenBatch {
        let batch = self.input_ids.len();
        let seq = self.input_ids.iter().map(Vec::len).max().unwrap_or(0);
        let mut input_ids = Vec::with_capacity(batch * seq);
        let mut attention_mask = Vec::with_capacity(batch * seq);
        for row in &self.input_ids {
            let padding = seq - row.len();
            let (before, after) = match side {
                PaddingSide::Left => (padding, 0),
                PaddingSide::Right => (0, padding),
            };
            let pads = |count| std::iter::repeat_n(i64::from(pad_token_id), count);
            input_ids.extend(pads(before).chain(row.iter().map(|&id| i64::from(id))).chain(pads(after)));
            let marks = |mark, count| std::iter::repeat_n(mark, count);
            attention_mask.extend(marks(0, before).chain(marks(1, row.len())).chain(marks(0, after)));
        }
        TokenBatch { input_ids, attention_mask, batch, seq }
    }

    /// Packs the tiles of all rows into one array, zero-padded to the largest tile. Returns `None` if no row has an
    /// image.
    pub fn padded_images(&self) -> Option<PaddedImages> {
        self.images.iter().any(|row| !row.is_empty()).then(|| pad_batch(&self.images))
    }
}
