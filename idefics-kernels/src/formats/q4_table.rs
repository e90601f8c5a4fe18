//! Sizes and table of the q4 format, which [`super::Q4`] describes.

/// Columns that share one scale in a row.
pub const BLOCK: usize = 32;

/// Rows of a panel.
pub const PANEL: usize = 16;

/// Bytes of one block of one panel.
pub const TILE: usize = PANEL * BLOCK / 2;

/// What the codes stand for, in units of the scale.
pub const TABLE: [i8; 16] = [-127, -95, -74, -57, -42, -30, -19, -9, 0, 9, 19, 31, 44, 59, 78, 102];
