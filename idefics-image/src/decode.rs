//! From encoded bytes to upright 8-bit RGB.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::error::ImageError as LibraryError;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageBuffer, ImageDecoder};

use crate::clear::Clear;
use crate::jpeg::{self, JpegError};
use crate::{DecodeOptions, Format, ImageError, Limits, RgbImage};

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Alpha {
    /// The picture is laid over white, with the integer arithmetic of Pillow's `alpha_composite`, as the image
    /// processors' `convert_to_rgb` does. What a person sees.
    #[default]
    White,
    /// What the reference's processor makes of an image *file*: the colors as they are stored, but for one color that
    /// the file declares fully transparent, which becomes white.
    ///
    /// Its loader drops an alpha channel and the partial alpha of a palette (Pillow's `convert("RGB")`). A color key
    /// survives the loader, and then the image processor lays it over white: the `tRNS` color of a PNG in grey or RGB,
    /// the only clear entry of a palette whose other entries are opaque, the transparent index of a GIF. It means a
    /// color, so whatever else has that color becomes white too.
    Drop,
}

/// Decodes an encoded image to upright 8-bit RGB; see [`load`](crate::load), which reads it first.
///
/// `name` is how messages call the image: a path, or `image 2`.
///
/// # Errors
/// [`ImageError::Empty`], [`ImageError::Format`], [`ImageError::NoSuchPage`], [`ImageError::TooLarge`],
/// [`ImageError::Memory`], [`ImageError::TooThin`] before anything is decoded; [`ImageError::Decode`], [`ImageError::Coding`] and
/// [`ImageError::DecoderPanic`] from the decoder.
pub fn decode(
    bytes: &[u8],
    name: &str,
    limits: &Limits,
    options: impl Into<DecodeOptions>,
) -> Result<RgbImage, ImageError> {
    let DecodeOptions { alpha, page } = options.into();
    if bytes.is_empty() {
        return Err(ImageError::Empty { image: name.to_owned() });
    }
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: name.to_owned(), limit: limits.max_bytes });
    }
    let format = Format::sniff(bytes).map_err(|found| ImageError::Format { image: name.to_owned(), found })?;
    let input = Input { name, format, limits, alpha };
    if page.get() > 1 {
        return Err(ImageError::NoSuchPage { image: name.to_owned(), page, pages: 1 });
    }
    if let Some((width, height)) = header_size(format, bytes) {
        input.check_size(width, height)?;
    }
    // Nothing outlives a decoder that fails on its own assertion: what it wrote to is dropped.
    catch_unwind(AssertUnwindSafe(|| input.decode(bytes)))
        .unwrap_or_else(|_| Err(ImageError::DecoderPanic { image: name.to_owned(), format: format.name() }))
}

/// Width and height where they stand at a fixed place, so that a header alone is enough to refuse an image.
fn header_size(format: Format, bytes: &[u8]) -> Option<(u32, u32)> {
    match format {
        Format::Png => {
            let side = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
            (bytes.get(12..16)? == b"IHDR").then_some((side(16)?, side(20)?))
        }
        Format::Gif => {
            let side = |at: usize| Some(u32::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
            Some((side(6)?, side(8)?))
        }
        Format::Jpeg | Format::WebP | Format::Bmp => None,
    }
}

/// Whether the file reaches the end that it announces, for the format whose decoder lets a missing end pass: a WebP lies
/// as it was shot where its orientation comes last.
fn is_complete(format: Format, bytes: &[u8]) -> bool {
    match format {
        Format::WebP => bytes
            .get(4..8)
            .and_then(|length| length.try_into().ok())
            .is_some_and(|length| bytes.len() as u64 >= 8 + u64::from(u32::from_le_bytes(length))),
        Format::Png | Format::Jpeg | Format::Gif | Format::Bmp => true,
    }
}

/// One image on its way through a decoder.
struct Input<'a> {
    name: &'a str,
    format: Format,
    limits: &'a Limits,
    alpha: Alpha,
}

impl Input<'_> {
    fn decode(&self, bytes: &[u8]) -> Result<RgbImage, ImageError> {
        let reader = Cursor::new(bytes);
        match self.format {
            Format::Png => self.read(bytes, PngDecoder::with_limits(reader, self.decoder_limits())),
            Format::Jpeg => self.decode_jpeg(bytes),
            Format::WebP => self.read(bytes, WebPDecoder::new(reader)),
            Format::Gif => self.read(bytes, GifDecoder::new(reader)),
            Format::Bmp => self.read(bytes, BmpDecoder::new(reader)),
        }
    }

    fn decode_jpeg(&self, bytes: &[u8]) -> Result<RgbImage, ImageError> {
        let decoder = jpeg::Decoder::new(bytes).map_err(|error| self.jpeg_error(error))?;
        let (width, height) = decoder.size();
        self.check_size(width, height)?;
        self.check_memory(decoder.components().max(3) as u64 * u64::from(width) * u64::from(height))?;
        let orientation = decoder.exif().and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
        let data = decoder.decode(self.limits.max_decoded_bytes).map_err(|error| self.jpeg_error(error))?;
        upright(width, height, data, orientation)
    }

    fn read<D: ImageDecoder>(&self, bytes: &[u8], decoder: Result<D, LibraryError>) -> Result<RgbImage, ImageError> {
        let mut decoder = decoder.map_err(|error| self.decoder_error(error))?;
        let (width, height) = decoder.dimensions();
        self.check_size(width, height)?;
        let color_type = decoder.color_type();
        let needed = decoder.total_bytes();
        self.check_memory(needed)?;
        decoder.set_limits(self.decoder_limits()).map_err(|error| self.decoder_error(error))?;
        if !is_complete(self.format, bytes) {
            return Err(self.decode_error("the file ends early".to_owned()));
        }
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);

        let mut samples = vec![0; needed as usize];
        decoder.read_image(&mut samples).map_err(|error| self.decoder_error(error))?;
        let flatten = Flatten { alpha: self.alpha, clear: Clear::of_file(self.format, bytes) };
        let data = to_rgb8(samples, color_type, flatten)
            .ok_or_else(|| self.coding_error(format!("pixels of type {color_type:?}")))?;
        upright(width, height, data, orientation)
    }

    fn check_size(&self, width: u32, height: u32) -> Result<(), ImageError> {
        let Limits { max_pixels, max_aspect_ratio, .. } = *self.limits;
        let image = || self.name.to_owned();
        if width == 0 || height == 0 {
            return Err(self.decode_error(format!("its size is {width}x{height}")));
        }
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(ImageError::TooLarge { image: image(), width, height, max_pixels });
        }
        if u64::from(width.max(height)) > u64::from(width.min(height)) * u64::from(max_aspect_ratio) {
            return Err(ImageError::TooThin { image: image(), width, height, max: max_aspect_ratio });
        }
        Ok(())
    }

    fn check_memory(&self, needed: u64) -> Result<(), ImageError> {
        let limit = self.limits.max_decoded_bytes;
        if needed > limit {
            return Err(ImageError::Memory { image: self.name.to_owned(), needed, limit });
        }
        Ok(())
    }

    /// The decoders' own guard, behind ours: what they allocate besides the pixels.
    fn decoder_limits(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_alloc = Some(self.limits.max_decoded_bytes);
        limits
    }

    fn decoder_error(&self, error: LibraryError) -> ImageError {
        match error {
            LibraryError::Unsupported(error) => self.coding_error(error.to_string()),
            LibraryError::Limits(_) => {
                let limit = self.limits.max_decoded_bytes;
                ImageError::Memory { image: self.name.to_owned(), needed: limit.saturating_add(1), limit }
            }
            error => self.decode_error(error.to_string()),
        }
    }

    fn jpeg_error(&self, error: JpegError) -> ImageError {
        match error {
            JpegError::Damaged(reason) => self.decode_error(reason.into_owned()),
            JpegError::Coding(reason) => self.coding_error(reason.into_owned()),
            JpegError::Memory(needed) => {
                let limit = self.limits.max_decoded_bytes;
                ImageError::Memory { image: self.name.to_owned(), needed, limit }
            }
        }
    }

    fn decode_error(&self, reason: String) -> ImageError {
        ImageError::Decode { image: self.name.to_owned(), format: self.format.name(), reason }
    }

    fn coding_error(&self, reason: String) -> ImageError {
        ImageError::Coding { image: self.name.to_owned(), format: self.format.name(), reason }
    }
}

/// Any 8-bit or 16-bit pixels to 8-bit RGB: 16 bits lose their lower half, grey is repeated, alpha goes as asked.
/// `None` for pixels that no supported format produces.
fn to_rgb8(samples: Vec<u8>, color_type: ColorType, flatten: Flatten) -> Option<Vec<u8>> {
    let samples = match color_type {
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
            let pairs = samples.chunks_exact(2);
            pairs.map(|pair| (u16::from_ne_bytes([pair[0], pair[1]]) >> 8) as u8).collect()
        }
        _ => samples,
    };
    Some(match color_type {
        ColorType::Rgb8 | ColorType::Rgb16 if flatten.keeps_opaque() => samples,
        ColorType::Rgb8 | ColorType::Rgb16 => {
            samples.chunks_exact(3).flat_map(|rgb| flatten.pixel([rgb[0], rgb[1], rgb[2]], 255)).collect()
        }
        ColorType::L8 | ColorType::L16 => samples.iter().flat_map(|&grey| flatten.pixel([grey; 3], 255)).collect(),
        ColorType::La8 | ColorType::La16 => {
            samples.chunks_exact(2).flat_map(|pixel| flatten.pixel([pixel[0]; 3], pixel[1])).collect()
        }
        ColorType::Rgba8 | ColorType::Rgba16 => {
            let mut rgb = Vec::with_capacity(samples.len() / 4 * 3);
            for pixel in samples.chunks_exact(4) {
                rgb.extend(flatten.pixel([pixel[0], pixel[1], pixel[2]], pixel[3]));
            }
            rgb
        }
        _ => return None,
    })
}

/// [`Alpha`], with what it needs to know of the file.
#[derive(Debug, Clone, Copy)]
struct Flatten {
    alpha: Alpha,
    clear: Clear,
}

impl Flatten {
    fn pixel(self, rgb: [u8; 3], alpha: u8) -> [u8; 3] {
        match (self.clear.blank, self.alpha) {
            (Some(blank), _) if alpha == 0 => blank,
            (_, Alpha::White) => rgb.map(|value| over_white(value, alpha)),
            (_, Alpha::Drop) if self.clear.key == Some(rgb) => [255; 3],
            (_, Alpha::Drop) => rgb,
        }
    }

    fn keeps_opaque(self) -> bool {
        self.alpha == Alpha::White || self.clear.key.is_none()
    }
}

/// One channel value over opaque white.
///
/// Source: `ImagingAlphaComposite` of Pillow with an opaque backdrop: weights in 1/128 of 255ths, division by 255 by
/// shifts. An opaque pixel keeps its value and a fully transparent one is white.
fn over_white(value: u8, alpha: u8) -> u8 {
    const PRECISION_BITS: u32 = 7;
    let weight = u32::from(alpha) << PRECISION_BITS;
    let white = 255 * ((255 << PRECISION_BITS) - weight);
    let sum = u32::from(value) * weight + white + (0x80 << PRECISION_BITS);
    ((((sum >> 8) + sum) >> 8) >> PRECISION_BITS) as u8
}

/// Turns and mirrors the picture as its EXIF orientation says.
fn upright(width: u32, height: u32, data: Vec<u8>, orientation: Orientation) -> Result<RgbImage, ImageError> {
    if orientation == Orientation::NoTransforms {
        return RgbImage::new(width, height, data);
    }
    let actual = data.len();
    let buffer = ImageBuffer::from_raw(width, height, data).ok_or(ImageError::PixelCount {
        width,
        height,
        expected: 3 * u64::from(width) * u64::from(height),
        actual,
    })?;
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    RgbImage::new(image.width(), image.height(), image.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::over_white;

    #[test]
    fn transparency_is_laid_over_white_as_pillow_does() {
        assert_eq!([10, 20, 30].map(|value| over_white(value, 128)), [132, 137, 142]);
        for value in 0..=255 {
            assert_eq!(over_white(value, 255), value);
            assert_eq!(over_white(value, 0), 255);
        }
    }
}
