//! Decodes compressed strips and tiles.
//!
//! Source: `TiffDecode.c` of Pillow, the codecs of libtiff 4.7.

use std::borrow::Cow;

use super::TiffError;
use super::chunks::{Chunk, Chunks};
use super::deflate;
use super::error::zeroed;
use super::fax::{Coding, Fax};
use super::jpeg::Jpeg;
use super::lzw::Lzw;
use super::mode::{Mode, divide_by_alpha};
use super::packbits;
use super::page::{Compression, Page};
use super::predictor::Predictor;
use super::tag::Tag;
use super::thunder;

/// The decoder for the compression of a page.
#[derive(Debug)]
enum Codec {
    Fax(Fax),
    Lzw(Lzw),
    Deflate,
    PackBits,
    ThunderScan,
    Jpeg(Box<Jpeg>),
}

/// Returns the CCITT coding of a page, or `None` if the page has another compression.
fn fax_coding(page: &Page<'_>) -> Result<Option<Coding>, TiffError> {
    Ok(match page.compression {
        Compression::HuffmanRows { is_word_aligned } => Some(Coding::Runs { is_word_aligned }),
        Compression::Group3 => {
            let is_two_dimensional = page.tags.value(Tag::T4_OPTIONS)?.unwrap_or(0) & 1 == 1;
            Some(Coding::Group3 { is_two_dimensional })
        }
        Compression::Group4 => Some(Coding::Group4),
        _ => None,
    })
}

/// Returns the number of bytes that the decoder of a page needs in addition to its rows and pixels.
pub(super) fn state_bytes(page: &Page<'_>) -> Result<u64, TiffError> {
    fax_coding(page)?.map_or(Ok(0), |coding| coding.run_bytes(page.cut.width))
}

/// Vertical position of a strip or tile in the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// First row.
    pub(super) top: usize,
    /// Number of rows.
    pub(super) rows: usize,
}

/// A decoder that turns strips or tiles into rows of samples, like libtiff. Samples of 16 and 32 bits are
/// little-endian.
#[derive(Debug)]
pub(super) struct Reader {
    codec: Codec,
    predictor: Predictor,
    is_reversed: bool,
}

impl Reader {
    pub(super) fn new(page: &Page<'_>, max_bytes: u64) -> Result<Self, TiffError> {
        let codec = match (page.compression, fax_coding(page)?) {
            (_, Some(coding)) => Codec::Fax(Fax::new(coding, page.cut.width, page.is_reversed)?),
            (Compression::Lzw, _) => Codec::Lzw(Lzw::new()),
            (Compression::Deflate, _) => Codec::Deflate,
            (Compression::PackBits, _) => Codec::PackBits,
            (Compression::ThunderScan, _) if page.bits == 4 && !page.cut.is_tiled => Codec::ThunderScan,
            (Compression::ThunderScan, _) => {
                return Err(TiffError::coding("ThunderScan in tiles, or with a depth other than 4 bits"));
            }
            (Compression::Jpeg, _) => Codec::Jpeg(Box::new(Jpeg::new(page, max_bytes)?)),
            // `tiff::samples` decodes uncompressed pages and old-style JPEG elsewhere
            (other, _) => return Err(TiffError::coding(format!("strips or tiles with the compression {other:?}"))),
        };
        let is_whole = matches!(codec, Codec::Fax(_) | Codec::Jpeg(_));
        Ok(Self { codec, predictor: Predictor::from_page(page)?, is_reversed: page.is_reversed && !is_whole })
    }

    /// Fills `out`, which has whole rows of `page.stored_row()` bytes. If the data ends early, the rest of `out` is
    /// unchanged.
    pub(super) fn read(
        &mut self,
        page: &Page<'_>,
        chunk: Chunk<'_>,
        place: Place,
        out: &mut [u8],
    ) -> Result<(), TiffError> {
        let data: Cow<'_, [u8]> = if self.is_reversed {
            chunk.data.iter().map(|byte| byte.reverse_bits()).collect()
        } else {
            chunk.data.into()
        };
        match &mut self.codec {
            Codec::Fax(fax) => fax.decode(&data, chunk.offset, out)?,
            Codec::Lzw(lzw) => lzw.decode(&data, out)?,
            Codec::Deflate => deflate::decode(&data, out)?,
            Codec::PackBits => packbits::decode(&data, out)?,
            Codec::ThunderScan => thunder::decode(&data, page.cut.width, out)?,
            Codec::Jpeg(jpeg) => return jpeg.decode(page, &data, place, out),
        }
        self.predictor.finish(out, page.stored_row(), page.interleaved_samples(), page.bits, page.order());
        Ok(())
    }
}

/// Decodes a page to pixels of its mode, and passes each row of strips or tiles to `take`: `[rows, width, pixel]`.
pub(super) fn decode(page: &Page<'_>, max_bytes: u64, mut take: impl FnMut(Vec<u8>)) -> Result<(), TiffError> {
    if page.tags.has_two_sizes {
        return Err(TiffError::damaged("it declares two different sizes (tags ImageWidth, ImageLength)"));
    }
    let (width, height) = (page.width as usize, page.height as usize);
    let pixel = page.mode.pixel_bytes();
    let mut samples = page.samples.in_native_order();
    if page.compression == Compression::Jpeg && page.photometric == 6 && !page.is_planar {
        // The JPEG decoder has already converted YCbCr to RGB.
        samples = super::mode::Samples::Bytes { stored: pixel, is_reversed: false, is_premultiplied: false };
    }
    let planes = page.planes();
    let (cut, stored_row) = (page.cut, page.stored_row());
    let expected_row = (cut.width.saturating_mul(samples.bits()) / planes).div_ceil(8);
    if stored_row != expected_row {
        return Err(TiffError::damaged(format!(
            "rows have {stored_row} bytes; expected {expected_row} for its colour space (tag PhotometricInterpretation)"
        )));
    }
    if planes > 1 && !matches!(page.bits, 8 | 16) {
        return Err(TiffError::coding(format!("samples of {} bits in separate planes", page.bits)));
    }
    // Pillow computes the bytes of a tile column by column. For a tile with odd sides, the result can be smaller than
    // if it were computed row by row.
    let by_columns = (cut.height.saturating_mul(samples.bits()) / planes).div_ceil(8).saturating_mul(cut.width);
    if cut.is_tiled && page.decoded_bytes() > by_columns {
        return Err(TiffError::damaged(format!(
            "tiles have {} bytes; expected at most {by_columns} (tags TileWidth, TileLength)",
            page.decoded_bytes()
        )));
    }
    let mut reader = Reader::new(page, max_bytes)?;
    let chunks = Chunks::new(page, page.decoded_bytes())?;
    let mut buffer = zeroed(page.decoded_bytes())?;
    for down in 0..cut.down {
        let top = down * cut.height;
        let visible = cut.height.min(height - top);
        let rows = if cut.is_tiled { cut.height } else { visible };
        let mut band = zeroed(width * visible * pixel)?;
        for (plane, across) in (0..planes).flat_map(|plane| (0..cut.across).map(move |across| (plane, across))) {
            let chunk = chunks.get(plane * cut.count() + down * cut.across + across)?;
            reader.read(page, chunk, Place { top, rows }, &mut buffer[..rows * stored_row])?;
            let left = across * cut.width;
            let columns = cut.width.min(width - left);
            for (y, row) in buffer.chunks_exact(stored_row).take(visible).enumerate() {
                let out = &mut band[(y * width + left) * pixel..][..columns * pixel];
                if planes == 1 {
                    samples.unpack(page.mode, row, out);
                } else {
                    unpack_band(row, page.bits, out, pixel, plane);
                }
            }
        }
        if planes > 1 && page.mode == Mode::Rgba && matches!(page.extra.first(), None | Some(0 | 1)) {
            // libtiff treats a fourth sample of unspecified kind like premultiplied alpha.
            band.chunks_exact_mut(pixel).for_each(divide_by_alpha);
        }
        take(band);
    }
    Ok(())
}

/// Copies a row of one plane to the channel `band` of the pixels. Pillow drops the alpha plane of grey and palette
/// images.
fn unpack_band(row: &[u8], bits: u16, out: &mut [u8], pixel: usize, band: usize) {
    if pixel == 2 && band == 1 {
        return;
    }
    let step = usize::from(bits / 8);
    let values = row.chunks_exact(step).map(|sample| sample[step - 1]);
    for (out, value) in out.chunks_exact_mut(pixel).zip(values) {
        out[band] = value;
    }
}
