//! Decodes strips and tiles that contain JPEG data (compression 7).
//!
//! Source: TIFF Technical Note 2; `tif_jpeg.c` of libtiff 4.7.

use super::TiffError;
use super::compressed::Place;
use super::page::Page;
use super::tag::Tag;
use crate::jpeg::{Color, Decoder, Tables};
use crate::output::Bands;

const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];

/// A decoder of the JPEG strips or tiles of an image.
#[derive(Debug)]
pub(super) struct Jpeg {
    /// The tables of the tag JPEGTables, updated by the tables of each strip or tile.
    tables: Tables,
    color: Color,
    /// The sampling factors of the first component in the first strip or tile. They must be the same in every strip or
    /// tile.
    sampling: Option<(usize, usize)>,
    max_bytes: u64,
}

impl Jpeg {
    pub(super) fn new(page: &Page<'_>, max_bytes: u64) -> Result<Self, TiffError> {
        let tables = match page.tags.bytes(Tag::JPEG_TABLES) {
            Some(file) => Tables::read(file)?,
            None => Tables::default(),
        };
        let is_ycbcr = page.photometric == 6 && page.stored_samples == 3 && !page.is_planar;
        let color = if is_ycbcr { Color::YCbCr } else { Color::Plain { components: page.interleaved_samples() } };
        Ok(Self { tables, color, sampling: None, max_bytes })
    }

    /// Decodes a strip or tile and fills `out` with its rows. If the data ends early, the rest is grey. If the JPEG
    /// image is smaller than its strip or tile, the remaining area is black.
    pub(super) fn decode(
        &mut self,
        page: &Page<'_>,
        data: &[u8],
        place: Place,
        out: &mut [u8],
    ) -> Result<(), TiffError> {
        if page.bits != 8 {
            return Err(TiffError::coding(format!("JPEG with {} bits per sample (tag BitsPerSample)", page.bits)));
        }
        let file = [data, &END_OF_IMAGE].concat();
        let decoder = Decoder::with_tables(&file, &self.tables)?;
        self.tables = decoder.tables();
        if decoder.components() != page.interleaved_samples() {
            return Err(TiffError::damaged(format!(
                "JPEG data has {} components; expected {} (tag SamplesPerPixel)",
                decoder.components(),
                page.interleaved_samples()
            )));
        }
        self.check_sampling(&decoder.sampling())?;
        let (width, height) = decoder.size();
        let (width, height) = (width as usize, height as usize);
        if width == 0 || height == 0 {
            return Err(TiffError::damaged(format!(
                "JPEG data has the size {width}x{height}; both sides must be at least 1 pixel"
            )));
        }
        // The JPEG data of the last strip may have the full height of a strip.
        let is_last = !page.cut.is_tiled && width == page.cut.width && place.top + place.rows == page.height as usize;
        if width > page.cut.width || height > place.rows && !(is_last && height <= page.cut.height) {
            return Err(TiffError::damaged(format!(
                "JPEG data has the size {width}x{height}; expected {}x{}",
                page.cut.width, place.rows
            )));
        }
        let row_bytes = out.len() / place.rows;
        let pixel = row_bytes / page.cut.width;
        if width < page.cut.width || height < place.rows {
            out.fill(0);
        }
        let mut outs = out.chunks_exact_mut(row_bytes);
        let mut bands = Bands::new(|band: &[u8]| {
            for (row, out) in band.chunks_exact(width * pixel).zip(&mut outs) {
                out[..width * pixel].copy_from_slice(row);
            }
        });
        decoder.decode_as(self.color, self.max_bytes, &mut bands)?;
        Ok(())
    }

    fn check_sampling(&mut self, factors: &[(usize, usize)]) -> Result<(), TiffError> {
        let first = factors.first().copied().unwrap_or((1, 1));
        let expected = if self.color == Color::YCbCr { *self.sampling.get_or_insert(first) } else { (1, 1) };
        if first != expected || factors.iter().skip(1).any(|&factors| factors != (1, 1)) {
            return Err(TiffError::coding(format!("JPEG data with the sampling factors {factors:?}")));
        }
        Ok(())
    }
}
