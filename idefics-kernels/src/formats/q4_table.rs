//! Sizes and code table of the q4 format (see [`super::Q4`]).

/// Number of columns of a row that share a scale.
pub const BLOCK: usize = 32;

/// Number of interleaved rows in a panel.
pub const PANEL: usize = 16;

/// Number of bytes in a tile. A tile is one block of columns in one panel.
pub const TILE: usize = PANEL * BLOCK / 2;

/// The values of the sixteen codes, in units of the scale.
pub const TABLE: [i8; 16] = [-127, -95, -74, -57, -42, -30, -19, -9, 0, 9, 19, 31, 44, 59, 78, 102];
