//! TIFF decoder that produces exactly the pixels of Pillow.
//!
//! It reads the files that Pillow reads, in the same modes, according to the table in `TiffImagePlugin.py` (see
//! [`mode`]): strips and tiles, interleaved samples or planes, classic TIFF and BigTIFF. Supported compressions:
//! none, LZW (both forms), deflate, PackBits, CCITT (modified Huffman, group 3, group 4), ThunderScan, and JPEG (both
//! kinds). Everything else is rejected with an error that names it.
//!
//! Damaged files are rejected if Pillow with libtiff 4.7 rejects them. Damaged files that Pillow tolerates give the
//! same pixels.
//!
//! Data flow: [`directory`] parses the tags of a page, and [`page`] interprets them. [`raw`] and [`compressed`] decode
//! strips and tiles to samples of a mode, and [`color`] converts these samples to pixels.

mod chunks;
mod color;
mod compressed;
mod deflate;
mod directory;
mod error;
mod fax;
mod jpeg;
mod lab;
mod lzw;
mod mode;
mod old_jpeg;
mod packbits;
mod page;
mod predictor;
mod raw;
mod tag;
mod thunder;
mod ycbcr;

use std::num::NonZeroU32;

use image::metadata::Orientation;

use self::color::{Colors, color_map};
use self::directory::{Directory, missing};
use self::error::TiffError;
use self::mode::Mode;
use self::page::{Compression, Page};
use self::tag::Tag;
use crate::ImageError;
use crate::decode::Input;
use crate::orientation::read_xmp;
use crate::output::{Header, Output, RowSink};
use crate::raster::Palette;

/// Decodes a page. Pages are counted from 1.
pub(crate) fn decode(
    file: &[u8],
    input: &Input<'_>,
    page: NonZeroU32,
    output: Output<'_>,
) -> Result<RowSink, ImageError> {
    let error = |error| match error {
        TiffError::Damaged(reason) => input.damaged(reason),
        TiffError::Coding(reason) => input.coding(reason),
        TiffError::Memory(needed) => input.memory_error(needed),
        TiffError::OutOfMemory(needed) => input.no_memory(needed),
        TiffError::NoSuchPage(pages) => input.no_such_page(pages),
    };
    let page = Directory::read_page(file, page).and_then(Page::new).map_err(error)?;
    input.check_size(page.width, page.height)?;
    input.check_memory(needed_bytes(&page).map_err(error)?)?;
    let colors = Colors::new(page.mode, palette(&page).map_err(error)?);
    let header = Header { orientation: orientation(&page), ..Header::new(page.width, page.height) };
    let mut rows = output.begin(header, input)?;
    samples(&page, input.max_decoded_bytes() as u64, |band| {
        rows.push(&colors.pixels(band));
    })
    .map_err(error)?;
    Ok(rows)
}

fn palette(page: &Page<'_>) -> Result<Option<Palette>, TiffError> {
    match page.mode {
        Mode::Palette | Mode::PaletteAlpha => {
            let values =
                page.tags.numbers(Tag::COLOR_MAP, color::MAX_VALUES)?.ok_or_else(|| missing(Tag::COLOR_MAP))?;
            color_map(values).map(Some)
        }
        _ => Ok(None),
    }
}

/// Returns the maximum number of bytes that decoding holds in memory: a band of pixels, the strip or tile from which
/// the band is decoded, and the state of the decoder.
fn needed_bytes(page: &Page<'_>) -> Result<u64, TiffError> {
    let rows = match page.compression {
        Compression::OldJpeg => u64::from(page.height),
        Compression::None => raw::band_rows(page) as u64,
        _ => u64::from(page.height).min(page.cut.height as u64),
    };
    let band = u64::from(page.width).saturating_mul(rows).saturating_mul(page.mode.pixel_bytes().max(3) as u64);
    let chunk = match page.compression {
        Compression::None => 0,
        Compression::OldJpeg => page.decoded_bytes(),
        _ if page.is_ycbcr() => page.decoded_bytes().max(ycbcr::decoded_bytes(page)),
        _ => page.decoded_bytes(),
    };
    Ok(band.saturating_add(chunk as u64).saturating_add(compressed::state_bytes(page)?))
}

/// Decodes the page and passes samples of its mode to `take` in bands, from the top: `[rows, width, pixel]`. A band
/// contains all pixel rows of a row of strips or tiles, or some of these pixel rows.
fn samples(page: &Page<'_>, max_bytes: u64, take: impl FnMut(Vec<u8>) + Send) -> Result<(), TiffError> {
    match page.compression {
        Compression::None => raw::decode(page, take),
        Compression::OldJpeg => old_jpeg::decode(page, max_bytes, take),
        _ if page.is_ycbcr() => ycbcr::decode(page, max_bytes, take),
        _ => compressed::decode(page, max_bytes, take),
    }
}

/// Returns the orientation from the tag Orientation or, if the tag is missing, from the XMP packet.
fn orientation(page: &Page<'_>) -> Orientation {
    let code = match page.tags.value(Tag::ORIENTATION) {
        Ok(Some(code)) => u8::try_from(code).ok(),
        Ok(None) => page.tags.bytes(Tag::XMP).and_then(read_xmp),
        Err(_) => None,
    };
    code.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}
