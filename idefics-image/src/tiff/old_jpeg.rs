//! Decodes old-style JPEG, as originally defined by TIFF 6.0 (compression 6).
//!
//! A file has one of three forms: a whole JPEG stream, which is in the tag JPEGInterchangeFormat or in the first strip;
//! a JPEG stream that contains only tables and is continued by the strips; or tables in separate tags. Each form is
//! assembled into one JPEG file. Chroma is repeated, not interpolated, and colours are converted as for other
//! compressions.
//!
//! Source: TIFF 6.0 section 22; `tif_ojpeg.c` of libtiff 4.7.

use std::ops::Range;

use super::TiffError;
use super::chunks::Chunks;
use super::page::Page;
use super::tag::Tag;
use super::ycbcr::Colors;
use crate::jpeg::{Color, Decoder, Tables};
use crate::output::Bands;

const START_OF_IMAGE: [u8; 2] = [0xff, 0xd8];
const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];

/// Decodes a page to RGB, and passes it to `take` in bands: `[rows, width, 3]`.
pub(super) fn decode(page: &Page<'_>, max_bytes: u64, mut take: impl FnMut(Vec<u8>) + Send) -> Result<(), TiffError> {
    if page.is_planar || page.cut.across != 1 || page.stored_samples != 3 {
        return Err(TiffError::coding(
            "old-style JPEG in planes, in several columns of tiles, or without exactly three samples",
        ));
    }
    let file = assemble(page, max_bytes)?;
    let decoder = Decoder::with_tables(&file, &Tables::default())?;
    let (width, height) = (page.width as usize, page.height as usize);
    let size = decoder.size();
    if decoder.components() != 3 || size.0 < page.width || size.1 < page.height {
        return Err(TiffError::damaged(format!(
            "old-style JPEG data has the size {}x{} and {} components; expected {width}x{height} and 3",
            size.0,
            size.1,
            decoder.components()
        )));
    }
    let needed = 3 * u64::from(size.0) * u64::from(size.1);
    if needed > max_bytes {
        return Err(TiffError::Memory(needed));
    }
    let colors = Colors::new(page)?;
    let mut rows_left = height;
    let mut bands = Bands::new(|band: &[u8]| {
        let rows = band.chunks_exact(3 * size.0 as usize).take(rows_left);
        rows_left -= rows.len();
        take(rows.flat_map(|row| row[..3 * width].as_chunks().0).flat_map(|&pixel| colors.rgb(pixel)).collect());
    });
    decoder.decode_as(Color::Plain { components: 3 }, max_bytes, &mut bands)?;
    Ok(())
}

/// Assembles the parts of the file into one JPEG file. If strips overlap, the result may be larger than the TIFF file.
fn assemble(page: &Page<'_>, max_bytes: u64) -> Result<Vec<u8>, TiffError> {
    let offset_tag = if page.cut.is_tiled { Tag::TILE_OFFSETS } else { Tag::STRIP_OFFSETS };
    let first_offset = page.tags.value(offset_tag)?;
    let mut file = match stream(page)? {
        Some((place, stream)) if first_offset.is_none_or(|offset| place.contains(&offset)) => {
            return Ok([stream, &END_OF_IMAGE].concat());
        }
        Some((_, stream)) => {
            let whole = [stream, &END_OF_IMAGE].concat();
            let factors = Decoder::with_tables(&whole, &Tables::default()).ok().map(|decoder| decoder.sampling()[0]);
            let (start, rest) = stream.split_at(START_OF_IMAGE.len());
            let interval = restart_interval(page, factors.unwrap_or((page.chroma[0], page.chroma[1])))?;
            [start, &interval, rest.strip_suffix(&END_OF_IMAGE).unwrap_or(rest)].concat()
        }
        None => Vec::new(),
    };
    let chunks = Chunks::new(page, page.decoded_bytes())?;
    if file.is_empty() {
        let first = chunks.get(0)?.data;
        if first.starts_with(&START_OF_IMAGE) {
            return Ok([first, &END_OF_IMAGE].concat());
        }
        file = header(page)?;
    }
    let joined = chunks.total(page);
    if joined > page.tags.file.len() && joined as u64 > max_bytes {
        return Err(TiffError::Memory(joined as u64));
    }
    for index in 0..page.cut.count() {
        if index > 0 {
            file.extend([0xff, 0xd0 + (index - 1) as u8 % 8]);
        }
        file.extend(chunks.get(index)?.data);
    }
    file.extend(END_OF_IMAGE);
    Ok(file)
}

/// A range of the file, and the bytes in this range.
type Placed<'a> = (Range<u64>, &'a [u8]);

/// Returns the stream that the tag JPEGInterchangeFormat points to, if the stream starts like a JPEG file.
fn stream<'a>(page: &Page<'a>) -> Result<Option<Placed<'a>>, TiffError> {
    let Some(offset) = page.tags.value(Tag::JPEG_INTERCHANGE_FORMAT)? else { return Ok(None) };
    let rest = usize::try_from(offset).ok().and_then(|offset| page.tags.file.get(offset..)).unwrap_or_default();
    let length = match page.tags.value(Tag::JPEG_INTERCHANGE_FORMAT_LENGTH)? {
        None | Some(0) => rest.len(),
        Some(length) => usize::try_from(length).unwrap_or(usize::MAX).min(rest.len()),
    };
    let stream = Some(&rest[..length]).filter(|stream| stream.starts_with(&START_OF_IMAGE));
    Ok(stream.map(|stream| (offset..offset + length as u64, stream)))
}

/// Returns a segment that declares the number of units per strip as the restart interval, because decoding restarts at
/// each strip. Returns an empty segment if there is only one strip.
fn restart_interval(page: &Page<'_>, (across, down): (usize, usize)) -> Result<Vec<u8>, TiffError> {
    if page.cut.count() == 1 {
        return Ok(Vec::new());
    }
    let units = page.cut.width.div_ceil(8 * across).saturating_mul(page.cut.height.div_ceil(8 * down));
    let units = u16::try_from(units).map_err(|_| TiffError::coding("old-style JPEG in strips of this size"))?;
    Ok([&[0xff, 0xdd, 0, 4][..], &units.to_be_bytes()].concat())
}

/// Builds the headers of a JPEG file from the tags.
fn header(page: &Page<'_>) -> Result<Vec<u8>, TiffError> {
    let tables = |tag: Tag| -> Result<Vec<&[u8]>, TiffError> {
        let offsets = page.tags.numbers(tag, 3)?.ok_or_else(|| super::directory::missing(tag))?;
        let table = |offset| page.tags.file.get(usize::try_from(offset).ok()?..);
        let tables = (0..3).map(|index| offsets.get(index).and_then(table)).collect::<Option<_>>();
        tables.ok_or_else(|| TiffError::damaged(format!("the tag {} ({}) has fewer than 3 tables", tag.name(), tag.0)))
    };
    let ends_early = || TiffError::damaged("a JPEG table reaches beyond the end of the file");
    let mut file = vec![0xff, 0xd8];
    let mut segment = |marker: u8, data: &[u8]| {
        file.extend([0xff, marker]);
        file.extend((data.len() as u16 + 2).to_be_bytes());
        file.extend(data);
    };
    for (index, table) in tables(Tag::JPEG_Q_TABLES)?.into_iter().enumerate() {
        segment(0xdb, &[&[index as u8], table.get(..64).ok_or_else(ends_early)?].concat());
    }
    for (kind, tag) in [(0x00, Tag::JPEG_DC_TABLES), (0x10, Tag::JPEG_AC_TABLES)] {
        for (index, table) in tables(tag)?.into_iter().enumerate() {
            let counts = table.get(..16).ok_or_else(ends_early)?;
            let length = 16 + counts.iter().map(|&count| usize::from(count)).sum::<usize>();
            segment(0xc4, &[&[kind | index as u8], table.get(..length).ok_or_else(ends_early)?].concat());
        }
    }
    let [across, down] = page.chroma;
    // A tile may be larger than the image.
    let (width, height) = if page.cut.is_tiled {
        (page.cut.width, page.cut.height.saturating_mul(page.cut.down))
    } else {
        (page.cut.width, page.height as usize)
    };
    let side = |side: usize| u16::try_from(side).map_err(|_| TiffError::damaged("the image is too large for JPEG"));
    let size = [side(height)?.to_be_bytes(), side(width)?.to_be_bytes()].concat();
    let factors = (across << 4 | down) as u8;
    segment(0xc0, &[&[8][..], &size, &[3, 1, factors, 0, 2, 0x11, 1, 3, 0x11, 2]].concat());
    let interval = restart_interval(page, (across, down))?;
    if let [_, _, _, _, units @ ..] = &interval[..] {
        segment(0xdd, units);
    }
    segment(0xda, &[3, 1, 0x00, 2, 0x11, 3, 0x22, 0, 63, 0]);
    Ok(file)
}
