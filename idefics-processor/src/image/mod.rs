//! Images: from a path, URL or bytes to the tiles that the vision tower reads.
//!
//! The way of an image: [`load`] reads it under [`Limits`], tells its format from its first bytes, checks its size from
//! the header, decodes it to an upright [`RgbImage`]; [`ImageProcessor::process`] cuts, resizes and normalizes it into
//! [`ImageTile`]s; [`pad_batch`] packs tiles of different sizes into the one array of [`PaddedImages`].

mod clear;
mod config;
mod decode;
mod error;
mod format;
mod idefics2;
mod jpeg;
mod kernels;
mod pad;
mod resize;
mod rgb;
mod source;

pub use config::{ImageConfigError, ImageProcessorConfig, ImageSize};
pub use decode::{Alpha, decode};
pub use error::{ImageError, ImageErrorKind, PadError};
pub use format::Format;
pub use idefics2::{ImageProcessor, edges_size};
pub use pad::{ImageTile, PaddedImages, pad_batch};
pub use resize::{Filter, resize};
pub use rgb::RgbImage;
pub use source::{ImageSource, Limits, load};
