//! Image processors: from a decoded picture to the tiles that the vision tower reads.
//!
//! [`load`] decodes a picture (crate `idefics-image`, re-exported here); [`ImageProcessor::process`] cuts, resizes and
//! normalizes it into [`ImageTile`]s; [`pad_batch`] packs tiles of different sizes into the one array of
//! [`PaddedImages`].

mod config;
mod error;
mod idefics2;
mod pad;

pub use config::{ImageConfigError, ImageProcessorConfig, ImageSize};
pub use error::PadError;
pub use idefics_image::{
    Alpha, DecodeOptions, Filter, Format, ImageError, ImageErrorKind, ImageSource, Limits, RgbImage, decode, load,
    resize,
};
pub use idefics2::{ImageProcessor, edges_size};
pub use pad::{ImageTile, PaddedImages, pad_batch};
