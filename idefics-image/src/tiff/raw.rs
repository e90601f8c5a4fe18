//! Uncompressed strips and tiles.
//!
//! Pillow reads them itself: from an offset on as many rows as the rectangle has, whatever length the file gives it. Later
//! offsets paint over earlier ones; what no offset reaches stays black.
//!
//! Source: `TiffImageFile._setup` of Pillow's `TiffImagePlugin.py`, `ImageFile.load`, `RawDecode.c`.

use super::TiffError;
use super::directory::ByteOrder;
use super::mode::{Mode, Samples};
use super::page::Page;
use super::tag::Tag;

/// A rectangle of the picture and where its rows are.
#[derive(Debug, Clone, Copy)]
struct Tile {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
    offset: usize,
    /// Which plane, where samples lie in planes.
    plane: usize,
    /// Bytes from one row to the next.
    stride: usize,
}

/// Decodes a page into pixels of its mode, `[height, width, pixel]`.
pub(super) fn decode(page: &Page<'_>) -> Result<Vec<u8>, TiffError> {
    if page.photometric == 6 && page.mode == Mode::Rgb {
        return Err(TiffError::coding("uncompressed YCbCr (tags Compression, PhotometricInterpretation)"));
    }
    let width = page.width as usize;
    let pixel = page.mode.pixel_bytes();
    let mut pixels = vec![0; width * page.height as usize * pixel];
    let mut tiles = tiles(page)?;
    tiles.sort_by_key(|tile| tile.offset);
    // Of tiles in a row that only differ in where they lie, the last one counts.
    let mut tiles = tiles.into_iter().peekable();
    while let Some(tile) = tiles.next() {
        if tiles.peek().is_some_and(|next| Tile { offset: tile.offset, ..*next }.is(tile)) {
            continue;
        }
        let Tile { left, top, right, bottom, offset, stride, plane } = tile;
        let unpack = |row: &[u8], out: &mut [u8]| {
            if page.is_planar && page.mode.bands() > 1 {
                for (out, &value) in out.chunks_exact_mut(pixel).zip(row) {
                    out[plane] = value;
                }
            } else {
                row_samples(page).unpack(page.mode, row, out);
            }
        };
        let row_bytes = tile_row(page, right - left);
        for (index, y) in (top..bottom).enumerate() {
            let start = index.checked_mul(stride).and_then(|start| start.checked_add(offset));
            let row = start.and_then(|start| page.tags.file.get(start..)?.get(..row_bytes));
            let row = row.ok_or_else(|| TiffError::damaged("the file ends early"))?;
            unpack(row, &mut pixels[(y * width + left) * pixel..][..(right - left) * pixel]);
        }
    }
    Ok(pixels)
}

impl Tile {
    fn is(&self, other: Self) -> bool {
        let key = |tile: &Self| (tile.left, tile.top, tile.right, tile.bottom, tile.offset, tile.plane, tile.stride);
        key(self) == key(&other)
    }
}

/// The form of the samples of a row. In planes Pillow takes a byte a sample, however the file says it is.
fn row_samples(page: &Page<'_>) -> Samples {
    match (page.is_planar, page.samples) {
        (true, Samples::Packed { bits: 1, .. }) => Samples::Packed { bits: 1, is_inverted: false, is_reversed: false },
        (true, Samples::Long(_)) => Samples::Long(ByteOrder::Little),
        (true, _) => Samples::Packed { bits: 8, is_inverted: false, is_reversed: false },
        (false, samples) => samples,
    }
}

fn tile_row(page: &Page<'_>, columns: usize) -> usize {
    if page.is_planar && page.mode.bands() > 1 { columns } else { row_samples(page).row_bytes(columns) }
}

fn tiles(page: &Page<'_>) -> Result<Vec<Tile>, TiffError> {
    let (width, height) = (page.width as usize, page.height as usize);
    let (cut_width, cut_height) = (page.cut.width, page.cut.height);
    let tag = if page.cut.is_tiled { Tag::TILE_OFFSETS } else { Tag::STRIP_OFFSETS };
    let mut offsets = page.tags.values(tag)?.ok_or_else(|| super::directory::missing(tag))?;
    let planes = if page.is_planar { page.mode.bands() } else { 1 };
    let is_unknown = match page.samples {
        Samples::Bytes { is_premultiplied, .. } | Samples::Words { is_premultiplied, .. } => {
            is_premultiplied || page.mode.bands() == 2
        }
        Samples::Wide { .. } | Samples::Twelve => true,
        Samples::Packed { .. } | Samples::Long(_) => false,
    };
    if page.is_planar && is_unknown {
        return Err(TiffError::coding("uncompressed planes of this color (tag PlanarConfiguration)"));
    }
    if cut_width == width && cut_height == height && !page.is_planar {
        // Every one covers the picture.
        offsets.drain(..offsets.len() - 1);
    }
    let mut tiles = Vec::with_capacity(offsets.len());
    let (mut left, mut top, mut plane) = (0_usize, 0_usize, 0);
    for offset in offsets {
        if plane >= planes && page.is_planar {
            return Err(TiffError::damaged(format!("there are too many offsets (tag {})", tag.name())));
        }
        let (right, bottom) = (left.saturating_add(cut_width).min(width), top.saturating_add(cut_height).min(height));
        let row_bytes = tile_row(page, right - left);
        // A tile that reaches over the edge has more samples in a row than are read.
        let stored = if left + cut_width > width {
            cut_width * page.bits_of_pixel() / 8 / if page.is_planar { page.mode.bands() } else { 1 }
        } else {
            row_bytes
        };
        if stored < row_bytes {
            return Err(TiffError::damaged("a tile has rows that are too short"));
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        tiles.push(Tile { left, top, right, bottom, offset, plane, stride: stored });
        left += cut_width;
        if left >= width {
            (left, top) = (0, top + cut_height);
            if top >= height {
                top = 0;
                plane += usize::from(page.is_planar);
            }
        }
    }
    Ok(tiles)
}
