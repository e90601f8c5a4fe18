//! TIFF files, with the very pixels that Pillow gives.
//!
//! Which files are read, and as which of Pillow's modes, is the table of its `TiffImagePlugin.py`; see [`mode`]. Strips
//! and tiles, samples together or in planes, classic and BigTIFF. Compression: none, LZW (both forms), deflate,
//! PackBits, CCITT rows, group 3 and 4, ThunderScan, JPEG of both kinds. What else the tags can say is refused by name.
//!
//! Damaged files: what Pillow with libtiff 4.7 refuses is refused, what it lets pass comes out as it does there.
//!
//! The way of a file: [`directory`] reads the tags of a page, [`page`] what they say; [`raw`] and [`compressed`] decode
//! strips and tiles to pixels of a mode, [`color`] hands them on.

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

/// Decodes a page, counted from 1.
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
    let page = Directory::of_page(file, page).and_then(Page::new).map_err(error)?;
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

/// The most bytes that decoding holds: a band of pixels, the strip or tile that it comes from, and what the decoder keeps
/// beside them.
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

/// Hands the pixels to `take` in bands from the top, of the page's mode: `[rows, width, pixel]`. A band is a row of strips or
/// tiles, or some rows of JPEG data.
fn samples(page: &Page<'_>, max_bytes: u64, take: impl FnMut(Vec<u8>) + Send) -> Result<(), TiffError> {
    match page.compression {
        Compression::None => raw::decode(page, take),
        Compression::OldJpeg => old_jpeg::decode(page, max_bytes, take),
        _ if page.is_ycbcr() => ycbcr::decode(page, max_bytes, take),
        _ => compressed::decode(page, max_bytes, take),
    }
}

/// The tag Orientation, or else that of the XMP packet.
fn orientation(page: &Page<'_>) -> Orientation {
    let code = match page.tags.value(Tag::ORIENTATION) {
        Ok(Some(code)) => u8::try_from(code).ok(),
        Ok(None) => page.tags.bytes(Tag::XMP).and_then(read_xmp),
        Err(_) => None,
    };
    code.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}
