//! Decodes encoded bytes to upright 8-bit RGB.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::jpeg::{self, JpegError};
use crate::orientation::orientation;
use crate::output::{Header, Output, RowSink};
use crate::resize::zeroed;
use crate::source::MAX_BYTES_PER_PIXEL;
use crate::{Crop, DecodeOptions, Format, ImageError, Limits, ResizeTarget, RgbImage};
use crate::{avif, bmp, gif, ico, jpeg2000, png, pnm, tga, tiff, webp};

/// How transparency is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Alpha {
    /// Composites the image on white with the integer arithmetic of Pillow's `alpha_composite`, like `convert_to_rgb`
    /// of the image processors in Transformers. The result is what a viewer shows on a white page.
    #[default]
    White,
    /// Drops alpha and keeps the stored colours, as Transformers does when it loads an image *file*. Exception: a
    /// colour key (a single colour that the file declares fully transparent) becomes white.
    ///
    /// Transformers' `load_image` calls Pillow's `convert("RGB")`, which drops an alpha channel and the partial alpha
    /// of a palette. A colour key survives this call, and the image processor then composites it on white. A colour key
    /// is the `tRNS` colour of a grey or RGB PNG, the only transparent entry of a palette whose other entries are
    /// opaque, or the transparent index of a GIF. It denotes a colour: every pixel of that colour becomes white.
    Drop,
}

/// Decodes an encoded image to upright 8-bit RGB. [`load`](crate::load) reads and decodes an
/// [`ImageSource`](crate::ImageSource).
///
/// Error messages start with `name`, for example a path or `image 2`.
///
/// # Errors
/// Before any pixels are decoded: [`ImageError::Empty`], [`ImageError::TooManyBytes`], [`ImageError::Format`],
/// [`ImageError::NoSuchPage`], [`ImageError::TooLarge`] and [`ImageError::TooThin`]. From the decoder:
/// [`ImageError::Memory`], [`ImageError::OutOfMemory`], [`ImageError::Decode`], [`ImageError::Coding`] and
/// [`ImageError::DecoderPanic`].
pub fn decode(
    bytes: &[u8],
    name: &str,
    limits: &Limits,
    options: impl Into<DecodeOptions>,
) -> Result<RgbImage, ImageError> {
    let whole = |width, height| vec![ResizeTarget::unchanged(width, height)];
    let mut pictures = decode_resized(bytes, name, limits, options, whole)?;
    Ok(pictures.pop().expect("the decoder returns one image per target"))
}

/// Decodes an image and resizes it to the targets that `plan` returns. `plan` is called with the upright width and
/// height in pixels. The result has one image per target, in the same order.
///
/// The pixels are the same as those of [`resize_view`](crate::resize_view) on the decoded image. If the format can be
/// decoded row by row, only the rows that resizing needs are held in memory.
///
/// # Errors
/// The errors of [`decode`], and [`ImageError::Target`] if a target is empty or reaches outside the image.
pub fn decode_resized(
    bytes: &[u8],
    name: &str,
    limits: &Limits,
    options: impl Into<DecodeOptions>,
    plan: impl FnOnce(u32, u32) -> Vec<ResizeTarget> + Send,
) -> Result<Vec<RgbImage>, ImageError> {
    let DecodeOptions { alpha, page } = options.into();
    if bytes.is_empty() {
        return Err(ImageError::Empty { image: name.to_owned() });
    }
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: name.to_owned(), limit: limits.max_bytes });
    }
    let format = Format::sniff(bytes).map_err(|found| ImageError::Format { image: name.to_owned(), found })?;
    let input = Input { name, format, limits, page };
    if page.get() > 1 && format != Format::Tiff {
        return Err(ImageError::NoSuchPage { image: name.to_owned(), page, pages: 1 });
    }
    // Unwind safety: after a panic, everything that the decoder wrote to is dropped.
    catch_unwind(AssertUnwindSafe(|| {
        let rows = input.decode(bytes, Output::new(Box::new(plan), alpha))?;
        Ok(rows.finish())
    }))
    .unwrap_or_else(|_| Err(ImageError::DecoderPanic { image: name.to_owned(), format: format.name() }))
}

/// The image being decoded: its name for messages, its format, the limits and the requested page.
///
/// A decoder calls [`check_size`](Self::check_size) and [`check_memory`](Self::check_memory) with the values of the
/// header before it allocates memory for pixels.
pub(crate) struct Input<'a> {
    name: &'a str,
    format: Format,
    limits: &'a Limits,
    /// The page to decode, counted from 1.
    page: NonZeroU32,
}

impl<'a> Input<'a> {
    /// Describes a file whose first page is to be decoded.
    pub(crate) fn new(name: &'a str, format: Format, limits: &'a Limits) -> Self {
        Self { name, format, limits, page: NonZeroU32::MIN }
    }
}

impl Input<'_> {
    fn decode(&self, bytes: &[u8], output: Output<'_>) -> Result<RowSink, ImageError> {
        match self.format {
            Format::Png => png::decode(bytes, self, output),
            Format::Jpeg => self.decode_jpeg(bytes, output),
            Format::WebP => output.put(webp::decode(bytes, self)?, self),
            Format::Gif => output.put(gif::decode(bytes, self)?, self),
            Format::Bmp => bmp::decode(bytes, self, output),
            Format::Pnm => pnm::decode(bytes, self, output),
            Format::Ico => output.put(ico::decode(bytes, self)?, self),
            Format::Cur => output.put(ico::decode_cursor(bytes, self)?, self),
            Format::Tga => output.put(tga::decode(bytes, self)?, self),
            Format::Avif => output.put(avif::decode(bytes, self)?, self),
            Format::Jpeg2000 => output.put(jpeg2000::decode(bytes, self)?, self),
            Format::Tiff => tiff::decode(bytes, self, self.page, output),
        }
    }

    fn decode_jpeg(&self, bytes: &[u8], output: Output<'_>) -> Result<RowSink, ImageError> {
        let decoder = jpeg::Decoder::new(bytes).map_err(|error| self.jpeg_error(error))?;
        let (width, height) = decoder.size();
        self.check_size(width, height)?;
        let orientation = orientation(decoder.exif(), decoder.xmp());
        let mut rows = output.begin(Header { orientation, ..Header::new(width, height) }, self)?;
        decoder.decode(self.limits.max_decoded_bytes, &mut rows).map_err(|error| self.jpeg_error(error))?;
        Ok(rows)
    }

    /// Rejects sides of 0 and sizes beyond the limits. If a size passes, the number of bytes of its pixels does not
    /// overflow, even if no limits are set.
    pub(crate) fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        let Limits { max_pixels, max_aspect_ratio, .. } = *self.limits;
        let image = || self.name.to_owned();
        if width == 0 || height == 0 {
            return Err(self.damaged(format!("its size is {width}x{height}; both sides must be at least 1 pixel")));
        }
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(ImageError::TooLarge { image: image(), width, height, max_pixels });
        }
        if u64::from(width.max(height)) > u64::from(width.min(height)) * u64::from(max_aspect_ratio) {
            return Err(ImageError::TooThin { image: image(), width, height, max: max_aspect_ratio });
        }
        let most = (u64::from(width) * u64::from(height)).saturating_mul(MAX_BYTES_PER_PIXEL);
        if isize::try_from(most).is_err() {
            return Err(self.memory_error(most));
        }
        Ok(())
    }

    /// Returns an error if `needed` bytes exceed the memory limit.
    pub(crate) fn check_memory(&self, needed: u64) -> Result<(), ImageError> {
        if needed > self.limits.max_decoded_bytes {
            return Err(self.memory_error(needed));
        }
        Ok(())
    }

    /// Returns the memory limit in bytes, for decoders that enforce it themselves.
    pub(crate) fn max_decoded_bytes(&self) -> usize {
        usize::try_from(self.limits.max_decoded_bytes).unwrap_or(usize::MAX)
    }

    /// Returns the error for an animation of more than `limit` frames.
    pub(crate) fn too_many_frames(&self, limit: usize) -> ImageError {
        ImageError::TooManyFrames { image: self.name.to_owned(), limit }
    }

    pub(crate) fn no_such_page(&self, pages: u32) -> ImageError {
        ImageError::NoSuchPage { image: self.name.to_owned(), page: self.page, pages }
    }

    pub(crate) fn memory_error(&self, needed: u64) -> ImageError {
        ImageError::Memory { image: self.name.to_owned(), needed, limit: self.limits.max_decoded_bytes }
    }

    /// Allocates `length` zero bytes. The caller has checked the memory limit.
    pub(crate) fn zeroed(&self, length: usize) -> Result<Vec<u8>, ImageError> {
        zeroed(length).map_err(|_| self.no_memory(length as u64))
    }

    pub(crate) fn no_memory(&self, needed: u64) -> ImageError {
        ImageError::OutOfMemory { image: self.name.to_owned(), needed }
    }

    /// Returns the error for a target that does not fit into an upright image of `width` × `height` pixels.
    pub(crate) fn bad_target(&self, target: ResizeTarget, width: u32, height: u32) -> ImageError {
        let ResizeTarget { crop, width: target_width, height: target_height, .. } = target;
        let Crop { left, top, right, bottom } = crop;
        let image = self.name.to_owned();
        ImageError::Target { image, left, top, right, bottom, width, height, target_width, target_height }
    }

    fn jpeg_error(&self, error: JpegError) -> ImageError {
        match error {
            JpegError::Damaged(reason) => self.damaged(reason),
            JpegError::Coding(reason) => self.coding(reason),
            JpegError::Memory(needed) => self.memory_error(needed),
            JpegError::OutOfMemory(needed) => self.no_memory(needed),
        }
    }

    /// Returns the error for a file that is damaged or ends early.
    pub(crate) fn damaged(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Decode { image: self.name.to_owned(), format: self.format.name(), reason: reason.into() }
    }

    /// Returns the error for a valid file with an unsupported coding.
    pub(crate) fn coding(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Coding { image: self.name.to_owned(), format: self.format.name(), reason: reason.into() }
    }
}
