//! Decodes uncompressed strips and tiles.
//!
//! Pillow reads uncompressed data without libtiff. From each offset, it reads all rows of the strip or tile and ignores
//! the declared length. In this module, a strip or tile is called a rectangle. Rectangles without an offset stay black.
//!
//! Source: `TiffImageFile._setup` of Pillow's `TiffImagePlugin.py`, `ImageFile.load`, `RawDecode.c`.

use std::ops::Range;

use super::TiffError;
use super::directory::{ByteOrder, Numbers, missing};
use super::error::zeroed;
use super::mode::{Mode, Samples};
use super::page::Page;
use super::tag::Tag;

/// Decodes a page to pixels of its mode, and passes them to `take` in bands: `[rows, width, pixel]`.
pub(super) fn decode(page: &Page<'_>, mut take: impl FnMut(Vec<u8>)) -> Result<(), TiffError> {
    if page.photometric == 6 && page.mode == Mode::Rgb {
        return Err(TiffError::coding("uncompressed YCbCr (tags Compression, PhotometricInterpretation)"));
    }
    let is_unknown = match page.samples {
        Samples::Bytes { is_premultiplied, .. } | Samples::Words { is_premultiplied, .. } => {
            is_premultiplied || page.mode.bands() == 2
        }
        Samples::Wide { .. } | Samples::Twelve => true,
        Samples::Packed { .. } | Samples::Long(_) => false,
    };
    if page.is_planar && is_unknown {
        return Err(TiffError::coding("uncompressed planes of this kind of samples (tag PlanarConfiguration)"));
    }
    let tag = if page.cut.is_tiled { Tag::TILE_OFFSETS } else { Tag::STRIP_OFFSETS };
    let offsets = page.tags.numbers(tag, usize::MAX)?.ok_or_else(|| missing(tag))?;
    let rectangles = page.cut.count() * page.planes();
    if page.is_planar && offsets.len() > rectangles {
        return Err(TiffError::damaged(format!(
            "there are {} offsets; expected at most {rectangles} (tag {})",
            offsets.len(),
            tag.name()
        )));
    }
    let most = band_rows(page);
    for down in 0..page.cut.down {
        let height = page.cut.height.min(page.height as usize - down * page.cut.height);
        let first = down * page.cut.across;
        let plane_starts = (0..page.planes()).map(|plane| plane * page.cut.count() + first);
        let indices = plane_starts.flat_map(|first| first..first + page.cut.across);
        let places: Vec<(usize, usize)> = indices
            .filter(|&index| index < offsets.len())
            .map(|index| {
                let offset = offset(page, offsets, index, rectangles).unwrap_or(u64::MAX);
                (index, usize::try_from(offset).unwrap_or(usize::MAX))
            })
            .collect();
        for top in (0..height).step_by(most) {
            let rows = top..height.min(top + most);
            let mut band = zeroed(page.width as usize * rows.len() * page.mode.pixel_bytes())?;
            for &(index, offset) in &places {
                read_rectangle(page, index, offset, rows.clone(), &mut band)?;
            }
            take(band);
        }
    }
    Ok(())
}

/// Returns the maximum number of rows in a band. A strip or tile may have more rows.
pub(super) fn band_rows(page: &Page<'_>) -> usize {
    /// Target size of a band, in bytes.
    const BAND_BYTES: usize = 256 << 10;
    (BAND_BYTES / (page.width as usize * page.mode.pixel_bytes()).max(1)).max(1)
}

/// Returns the offset of a rectangle in the file. If there are more offsets than rectangles, the extra offsets refer to
/// the rectangles again, from the first rectangle on. Pillow reads all offsets in ascending order, so the largest
/// offset of a rectangle takes effect.
fn offset(page: &Page<'_>, offsets: Numbers<'_>, index: usize, rectangles: usize) -> Option<u64> {
    let is_whole = page.cut.width == page.width as usize && page.cut.height == page.height as usize;
    if is_whole && !page.is_planar {
        // If a rectangle covers the whole image, Pillow uses the last offset in the list.
        return offsets.get(offsets.len() - 1);
    }
    (index..offsets.len()).step_by(rectangles).filter_map(|index| offsets.get(index)).max()
}

/// Reads `rows` of a rectangle into `band`, whose first row is row `rows.start` of the rectangle. `index` counts
/// rectangles in row-major order, plane by plane.
fn read_rectangle(
    page: &Page<'_>,
    index: usize,
    offset: usize,
    rows: Range<usize>,
    band: &mut [u8],
) -> Result<(), TiffError> {
    let (width, cut) = (page.width as usize, page.cut);
    let (plane, index) = (index / cut.count(), index % cut.count());
    let left = index % cut.across * cut.width;
    let columns = cut.width.min(width - left);
    let is_band = page.is_planar && page.mode.bands() > 1;
    let samples = row_samples(page);
    let row_bytes = if is_band { columns } else { samples.row_bytes(columns) };
    // In a tile that reaches beyond the right edge, the rows in the file are longer than the pixels that are read,
    // except if a stored row is shorter than a byte.
    let stored = cut.width.saturating_mul(page.bits_per_pixel()) / 8 / page.planes();
    let stride = if columns < cut.width && stored > 0 { stored } else { row_bytes };
    if stride < row_bytes || i32::try_from(stride).is_err() {
        return Err(TiffError::damaged(format!(
            "a tile has rows of {stride} bytes; expected {row_bytes} to {} (tag TileWidth)",
            i32::MAX
        )));
    }
    let pixel = page.mode.pixel_bytes();
    for (row, out) in rows.zip(band.chunks_exact_mut(width * page.mode.pixel_bytes())) {
        let start = row.checked_mul(stride).and_then(|start| start.checked_add(offset));
        let data = start.and_then(|start| page.tags.file.get(start..)?.get(..row_bytes));
        let data = data.ok_or_else(|| TiffError::damaged("the file ends early"))?;
        let out = &mut out[left * pixel..][..columns * pixel];
        if is_band {
            for (out, &value) in out.chunks_exact_mut(pixel).zip(data) {
                out[plane] = value;
            }
        } else {
            samples.unpack(page.mode, data, out);
        }
    }
    Ok(())
}

/// Returns the layout of the samples in a row. In planes, Pillow reads one byte per sample (except for 1-bit and 32-bit
/// samples) and ignores inversion and bit order.
fn row_samples(page: &Page<'_>) -> Samples {
    match (page.is_planar, page.samples) {
        (true, Samples::Packed { bits: 1, .. }) => Samples::Packed { bits: 1, is_inverted: false, is_reversed: false },
        (true, Samples::Long(_)) => Samples::Long(ByteOrder::Little),
        (true, _) => Samples::Packed { bits: 8, is_inverted: false, is_reversed: false },
        (false, samples) => samples,
    }
}
