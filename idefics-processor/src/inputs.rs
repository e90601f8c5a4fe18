//! What comes out of the processor: plain numbers, ready to be uploaded.

use crate::families::TileGrid;
use crate::image::{ImageTile, PaddedImages, pad_batch};

/// A processed batch, one entry a row, before any padding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ProcessedInputs {
    /// The text of each row as it was encoded, image tokens written out.
    pub prompts: Vec<String>,
    /// The ids of each row, as long as its text.
    pub input_ids: Vec<Vec<u32>>,
    /// The images of each row in the order of the text, sub-images included: each holds `image_seq_len` of the row's
    /// image tokens.
    pub images: Vec<Vec<ImageTile>>,
    /// How each image of each row was cut into tiles.
    pub grids: Vec<Vec<TileGrid>>,
}

/// The side on which short rows are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PaddingSide {
    /// Before the text, so that all rows end together: what generation needs.
    #[default]
    Left,
    /// After the text.
    Right,
}

/// The ids of a batch as one array.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenBatch {
    /// `[batch, seq]`, row by row.
    pub input_ids: Vec<i64>,
    /// `[batch, seq]`: 1 on real tokens, 0 on padding.
    pub attention_mask: Vec<i64>,
    /// Rows.
    pub batch: usize,
    /// Tokens of the longest row.
    pub seq: usize,
}

impl ProcessedInputs {
    /// The rows filled up to the longest with `pad_token_id`.
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

    /// The images of all rows in one array, zero-padded to the largest; `None` if no row has any.
    pub fn padded_images(&self) -> Option<PaddedImages> {
        self.images.iter().any(|row| !row.is_empty()).then(|| pad_batch(&self.images))
    }
}
