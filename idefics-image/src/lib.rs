#![doc = include_str!("../README.md")]

mod clear;
mod decode;
mod error;
mod format;
mod jpeg;
mod kernels;
mod options;
mod resize;
mod rgb;
mod source;

pub use decode::{Alpha, decode};
pub use error::{ImageError, ImageErrorKind};
pub use format::Format;
pub use options::DecodeOptions;
pub use resize::{Filter, resize, resize_view};
pub use rgb::{RgbImage, RgbView};
pub use source::{ImageSource, Limits, load};
