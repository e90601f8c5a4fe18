//! Why a picture could not become tiles, or tiles could not be packed into one array.

use idefics_image::ImageError;

/// Why a picture could not become tiles.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TileError {
    /// The picture could not be read.
    #[error(transparent)]
    Image(#[from] ImageError),

    /// The picture would become more tiles than a limit allows.
    #[error(
        "a picture of {width}x{height} pixels would become {tiles} tiles, at most {limit} are allowed; give a smaller \
         picture, or raise the limit (`max_tiles`, --max-tiles N)"
    )]
    TooMany {
        /// Width of the picture, in pixels.
        width: u32,
        /// Height of the picture, in pixels.
        height: u32,
        /// Tiles that it would become.
        tiles: u64,
        /// The limit.
        limit: u64,
    },
}

/// Why tiles could not be packed into one array, or taken out of it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PadError {
    /// `do_pad` is off and the tiles differ in size or number.
    #[error(
        "row {row} has {found} where row 0 has {expected}, and do_pad is off; set do_pad or give images of one size"
    )]
    Unequal {
        /// The row of the batch.
        row: usize,
        /// What the first row has.
        expected: String,
        /// What this row has.
        found: String,
    },

    /// The array's length does not follow from its shape.
    #[error("{name} has {actual} values where its shape {shape:?} needs {expected}")]
    Length {
        /// `pixel_values` or `pixel_attention_mask`.
        name: &'static str,
        /// The shape.
        shape: Vec<usize>,
        /// Product of the shape.
        expected: usize,
        /// Values given.
        actual: usize,
    },

    /// A mask that does not mark one rectangle at the top left.
    #[error(
        "pixel_attention_mask of row {row}, image {image} is not a rectangle at the top left with ones inside and zeros outside"
    )]
    Mask {
        /// The row of the batch.
        row: usize,
        /// The image in that row.
        image: usize,
    },
}
