#![doc = include_str!("../README.md")]

mod animation;
mod avi;
mod avif;
mod base64_text;
mod bmp;
mod decode;
mod error;
mod fetch;
mod format;
mod gif;
mod ico;
#[cfg(target_arch = "x86_64")]
mod isa;
mod jpeg;
mod jpeg2000;
mod options;
mod orientation;
mod output;
mod png;
mod pnm;
mod policy;
mod raster;
mod raw;
mod resize;
mod rgb;
mod source;
mod tga;
mod tiff;
mod webp;

pub use animation::Animation;
pub use avi::Avi;
pub use decode::{Alpha, decode, decode_resized};
pub use error::{ImageError, ImageErrorKind};
pub use format::Format;
pub use options::DecodeOptions;
pub use policy::{FileAccess, SourcePolicy, UrlAccess};
pub use resize::{Crop, Filter, ResizeTarget, resize, resize_view};
pub use rgb::{RgbImage, RgbView};
pub use source::{ImageSource, Limits, ReadOptions, load, load_resized, load_with};
