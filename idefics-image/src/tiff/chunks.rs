//! Locates the data of strips and tiles in the file.
//!
//! Source: `TIFFFillStrip` and `EstimateStripByteCounts` of libtiff 4.7.

use super::TiffError;
use super::directory::Numbers;
use super::page::{Cut, Page};
use super::tag::Tag;

/// Maximum total length of the stored strips or tiles, as a multiple of the file size. Strips and tiles may overlap in
/// the file, but not without bound.
const MAX_REUSE: usize = 16;
/// Number of bytes by which the total length may exceed [`MAX_REUSE`] times the file size.
const FREE_REUSE: usize = 64 << 20;
/// Maximum total decoded size of all strips or tiles, as a multiple of the size of the image. It is larger than 1
/// because tiles may reach beyond the edges of the image.
const MAX_PADDING: usize = 16;
/// Number of bytes by which the total decoded size may exceed [`MAX_PADDING`] times the size of the image.
const FREE_PADDING: usize = 1 << 30;

/// Offsets and lengths of all strips or tiles.
#[derive(Debug)]
pub(super) struct Chunks<'a> {
    file: &'a [u8],
    offsets: Numbers<'a>,
    counts: Option<Numbers<'a>>,
    /// Size of a decoded strip or tile, in bytes.
    decoded: usize,
    /// `strip` or `tile`, for messages.
    name: &'static str,
}

/// The data of one strip or tile, and its offset in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) data: &'a [u8],
    pub(super) offset: usize,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(page: &Page<'a>, decoded: usize) -> Result<Self, TiffError> {
        let Cut { is_tiled, .. } = page.cut;
        let (offsets, counts, name) = if is_tiled {
            (Tag::TILE_OFFSETS, Tag::TILE_BYTE_COUNTS, "tile")
        } else {
            (Tag::STRIP_OFFSETS, Tag::STRIP_BYTE_COUNTS, "strip")
        };
        let needed = page.cut.count() * page.planes();
        // Some writers use the tags of tiles for strips, or the tags of strips for tiles.
        let either = |tag, other| -> Result<_, TiffError> {
            Ok(match page.tags.numbers(tag, needed)? {
                Some(numbers) => Some(numbers),
                None => page.tags.numbers(other, needed)?,
            })
        };
        let missing = || super::directory::missing(offsets);
        let found = if is_tiled {
            (either(offsets, Tag::STRIP_OFFSETS)?, either(counts, Tag::STRIP_BYTE_COUNTS)?)
        } else {
            (either(offsets, Tag::TILE_OFFSETS)?, either(counts, Tag::TILE_BYTE_COUNTS)?)
        };
        let chunks =
            Self { file: page.tags.file, offsets: found.0.ok_or_else(missing)?, counts: found.1, decoded, name };
        if chunks.counts.is_none() && page.cut.count() > 1 {
            return Err(super::directory::missing(counts));
        }
        let picture = page.width as usize * page.height as usize * page.mode.pixel_bytes();
        let padded = needed.saturating_mul(decoded);
        if needed > 1 && padded > FREE_PADDING.saturating_add(picture.saturating_mul(MAX_PADDING)) {
            return Err(TiffError::damaged(format!("its {name}s are much larger than the image")));
        }
        if chunks.total(page) > FREE_REUSE.saturating_add(chunks.file.len().saturating_mul(MAX_REUSE)) {
            return Err(TiffError::damaged(format!("its {name}s overlap in the file")));
        }
        Ok(chunks)
    }

    /// Returns the total length of all strips or tiles in the file, in bytes. Data that several of them share is
    /// counted several times.
    pub(super) fn total(&self, page: &Page<'_>) -> usize {
        (0..page.cut.count() * page.planes()).map(|index| self.count(index)).fold(0, usize::saturating_add)
    }

    /// Returns the length of the data of a strip or tile, in bytes. If the file declares no length, the data reaches to
    /// the end of the file.
    fn count(&self, index: usize) -> usize {
        /// A length above this number of bytes is limited to a multiple of the decoded size.
        const LONG: usize = 1 << 20;
        let offset = self.offsets.get(index).unwrap_or(0);
        let rest = self.file.len().saturating_sub(usize::try_from(offset).unwrap_or(usize::MAX));
        let count = match &self.counts {
            None => rest,
            Some(counts) => match counts.get(index).unwrap_or(0) {
                0 if self.offsets.len() == 1 && offset != 0 => rest,
                count => usize::try_from(count).unwrap_or(usize::MAX),
            },
        };
        let most = self.decoded.saturating_mul(10).saturating_add(4096);
        if count > LONG { count.min(most) } else { count }
    }

    pub(super) fn get(&self, index: usize) -> Result<Chunk<'a>, TiffError> {
        let count = self.count(index);
        let offset = self.offsets.get(index).and_then(|offset| usize::try_from(offset).ok());
        let found = offset.and_then(|offset| {
            let data = self.file.get(offset..)?.get(..count)?;
            Some(Chunk { data, offset })
        });
        let name = self.name;
        match found {
            Some(chunk) if count > 0 => Ok(chunk),
            Some(_) => Err(TiffError::damaged(format!("{name} {index} has no data"))),
            None => Err(TiffError::damaged(format!("{name} {index} reaches beyond the end of the file"))),
        }
    }
}
