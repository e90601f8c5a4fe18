//! Errors from cutting pictures into tiles and from padding tiles.

use idefics_image::ImageError;

/// An error from reading a picture or from cutting it into tiles.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TileError {
    /// The picture could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),

    /// The picture would become more tiles than a limit allows.
    #[error(
        "an image of {width}x{height} pixels would become {tiles} tiles; at most {limit} are allowed; give a smaller \
         image, or raise the limit (--max-tiles N)"
    )]
    TooMany {
        /// Width of the picture, in pixels.
        width: u32,
        /// Height of the picture, in pixels.
        height: u32,
        /// Number of tiles that the picture would become.
        tiles: u64,
        /// Largest accepted number of tiles.
        limit: u64,
    },
}

/// An error from packing tiles into one array, or from unpacking them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PadError {
    /// `do_pad` is off, but the tiles differ in size or number.
    #[error(
        "row {row}: expected {expected} as in row 0, found {found}; \
         set do_pad, or give each row the same number of images of one size"
    )]
    Unequal {
        /// Row in the batch.
        row: usize,
        /// Number and size of the tiles that every row should have, as text.
        expected: String,
        /// Number and sizes of the tiles in this row, as text.
        found: String,
    },

    /// The length of an array does not match its shape.
    #[error("{name} has {actual} values; its shape {shape:?} needs {expected}")]
    Length {
        /// The array: `pixel_values`, `pixel_attention_mask` or `a tile`.
        name: &'static str,
        /// Shape of the array.
        shape: Vec<usize>,
        /// Number of values for this shape.
        expected: usize,
        /// Number of values in the array.
        actual: usize,
    },

    /// An attention mask is not a rectangle of ones at the top left.
    #[error(
        "row {row}, image {image}: pixel_attention_mask must be a rectangle of ones at the top left, \
         with zeros elsewhere"
    )]
    Mask {
        /// Row in the batch.
        row: usize,
        /// Index of the image in the row.
        image: usize,
    },
}
