//! The image processor: turns decoded pictures into the tiles that the vision tower reads.
//!
//! [`load`] decodes a picture (from the crate `idefics-image`, re-exported here). [`ImageProcessor::process`] cuts,
//! resizes and normalises it into [`ImageTile`]s. [`pad_batch`] packs tiles of different sizes into one array,
//! [`PaddedImages`].

mod config;
mod error;
mod pad;
mod processor;

pub use crate::families::resize_output_size;
pub use config::{ImageConfigError, ImageProcessorConfig, ImageSize};
pub(crate) use config::{field_error, number_error};
pub use error::{PadError, TileError};
pub use idefics_image::{
    Alpha, Crop, DecodeOptions, FileAccess, Filter, Format, ImageError, ImageErrorKind, ImageSource, Limits,
    ReadOptions, ResizeTarget, RgbImage, SourcePolicy, UrlAccess, decode, load, load_with, resize,
};
pub use pad::{ImageTile, PaddedImages, pad_batch};
pub use processor::ImageProcessor;
