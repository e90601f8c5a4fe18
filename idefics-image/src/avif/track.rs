//! Finds the first frame of an animation that has no still image.
//!
//! Source: ISO/IEC 14496-12 (tracks and their samples), 23008-12 (image sequences). The parts that libavif treats as
//! optional are optional here too.

use super::av1::ColorCodes;
use super::container::{Cell, CodedImage, MainImage, Reader, boxes, find, is_alpha_kind, read_colors};

/// Length in bytes of the fixed fields at the start of a sample entry. Boxes follow these fields.
const SAMPLE_ENTRY: usize = 78;

#[derive(Debug)]
struct Track<'a> {
    id: u32,
    size: (u32, u32),
    colors: Option<ColorCodes>,
    /// Id of the main track; `None` if this track is not auxiliary to another track.
    main: Option<u32>,
    is_alpha: bool,
    /// Id of the alpha track by which the colours of this track are premultiplied.
    premultiplied_by: Option<u32>,
    first: &'a [u8],
}

/// Reads the first frame of the first colour track, and the alpha of this frame.
pub(super) fn read(file: &[u8]) -> Option<MainImage<'_>> {
    let tracks = boxes(find(file, b"moov")?).filter(|(kind, _)| kind == b"trak");
    let tracks: Vec<_> = tracks.filter_map(|(_, data)| Track::read(file, data)).collect();
    let color = tracks.iter().find(|track| track.main.is_none())?;
    let alpha = tracks.iter().find(|track| track.main == Some(color.id) && track.is_alpha);
    Some(MainImage {
        color: color.coded(),
        alpha: alpha.map(Track::coded),
        is_premultiplied: alpha.is_some_and(|alpha| color.premultiplied_by == Some(alpha.id)),
        size: color.size,
        colors: color.colors,
        ..MainImage::default()
    })
}

impl<'a> Track<'a> {
    /// Reads a track. Returns `None` if the track is damaged or not AV1.
    fn read(file: &'a [u8], track: &'a [u8]) -> Option<Self> {
        let mut header = Reader(find(track, b"tkhd")?);
        let (version, _) = header.version()?;
        let long = if version == 0 { 4 } else { 8 };
        header.take(2 * long)?; // creation and modification time
        let id = header.u32()?;
        header.take(4 + long + 52)?; // duration, layer, volume, matrix
        let size = (header.u32()? >> 16, header.u32()? >> 16);

        let references = find(track, b"tref").unwrap_or_default();
        let reference = |kind| find(references, kind).and_then(|data| Reader(data).u32());

        let table = find(find(find(track, b"mdia")?, b"minf")?, b"stbl")?;
        let entries = find(table, b"stsd")?.get(8..)?;
        let entry = find(entries, b"av01")?.get(SAMPLE_ENTRY..)?;
        let colors = boxes(entry).filter(|(kind, _)| kind == b"colr").find_map(|(_, data)| read_colors(data));
        // Old versions of libavif write no auxiliary type. The only auxiliary track that they write is alpha.
        let is_alpha = find(entry, b"auxi").is_none_or(|data| data.get(4..).is_some_and(is_alpha_kind));

        let mut sizes = Reader(find(table, b"stsz")?.get(4..)?);
        let (uniform_length, _count) = (sizes.u32()?, sizes.u32()?);
        let length = if uniform_length == 0 { sizes.u32()? } else { uniform_length };
        let offset = match find(table, b"stco") {
            Some(offsets) => Reader(offsets.get(8..)?).number(4)?,
            None => Reader(find(table, b"co64")?.get(8..)?).number(8)?,
        };
        let first = file.get(usize::try_from(offset).ok()?..)?.get(..length as usize)?;
        let (main, premultiplied_by) = (reference(b"auxl"), reference(b"prem"));
        Some(Self { id, size, colors, main, is_alpha, premultiplied_by, first })
    }

    fn coded(&self) -> CodedImage<'a> {
        let cell = Cell { parts: vec![self.first], operating_point: 0 };
        CodedImage { rows: 1, columns: 1, cells: vec![cell], size: self.size }
    }
}
