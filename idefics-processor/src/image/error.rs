//! Why tiles could not be packed into one array.

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
