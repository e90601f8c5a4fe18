//! Parses the boxes of an AVIF file: finds the coded frames of the main image, and its size, colours and orientation.
//!
//! Source: ISO/IEC 14496-12 (boxes), 23008-12 (items, derived images, auxiliary images) and the AVIF specification. The
//! parts that libavif treats as optional or ignores are optional or ignored here too.

use super::av1::ColorCodes;
use super::track;

const ALPHA_KINDS: [&[u8]; 2] = [b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1"];

/// Maximum length of a metadata item (EXIF, XMP, grid), in bytes.
const MAX_METADATA: usize = 4 << 20;
/// Maximum number of cells in a grid.
const MAX_CELLS: usize = 1024;
/// Maximum number of extents of all items together.
const MAX_PARTS: usize = 1 << 16;

const MISSING: &str = "the data of its image is missing or cut off";

/// The main image of a file.
#[derive(Debug, Default)]
pub(super) struct MainImage<'a> {
    pub(super) color: CodedImage<'a>,
    pub(super) alpha: Option<CodedImage<'a>>,
    /// Whether the colours are premultiplied by alpha.
    pub(super) is_premultiplied: bool,
    /// Width and height in pixels, before rotation.
    pub(super) size: (u32, u32),
    /// The colour description of the container. It overrides the colour description of the frame.
    pub(super) colors: Option<ColorCodes>,
    /// Number of counterclockwise quarter turns, 0 to 3.
    pub(super) rotation: Option<u8>,
    /// The mirror axis: 0 swaps top and bottom, 1 swaps left and right.
    pub(super) mirror: Option<u8>,
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<Vec<u8>>,
}

/// The frames that make up an image: a grid of equal cells in row-major order, usually 1x1.
#[derive(Debug, Default)]
pub(super) struct CodedImage<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) cells: Vec<Cell<'a>>,
    pub(super) size: (u32, u32),
}

/// One coded frame of an image.
#[derive(Debug)]
pub(super) struct Cell<'a> {
    /// The AV1 data, in one or several extents.
    pub(super) parts: Vec<&'a [u8]>,
    /// The AV1 operating point, which selects the layers to decode.
    pub(super) operating_point: u8,
}

/// Returns whether a zero-terminated auxiliary type denotes alpha.
pub(super) fn is_alpha_kind(data: &[u8]) -> bool {
    ALPHA_KINDS.contains(&Reader(data).text())
}

/// Returns whether the brands of a HEIF file declare that it may contain AV1 images.
pub(crate) fn is_avif(bytes: &[u8]) -> bool {
    let Some((kind, data, _)) = next_box(bytes) else { return false };
    if kind != *b"ftyp" {
        return false;
    }
    let is_av1 = |brand: &[u8]| matches!(brand, b"avif" | b"avis");
    match data.get(..4) {
        Some(b"avif" | b"avis") => true,
        Some(b"mif1" | b"msf1") => data.get(8..).unwrap_or_default().chunks_exact(4).any(is_av1),
        _ => false,
    }
}

/// Splits off the first box. Returns its kind, its data, and the bytes after it.
fn next_box(bytes: &[u8]) -> Option<([u8; 4], &[u8], &[u8])> {
    let (&[a, b, c, d, kind @ ..], rest) = bytes.split_first_chunk::<8>()?;
    let (rest, length) = match u32::from_be_bytes([a, b, c, d]) {
        0 => (rest, rest.len()),
        1 => {
            let (length, rest) = rest.split_first_chunk()?;
            (rest, usize::try_from(u64::from_be_bytes(*length).checked_sub(16)?).ok()?)
        }
        length => (rest, (length as usize).checked_sub(8)?),
    };
    let (data, rest) = rest.split_at_checked(length)?;
    Some((kind, data, rest))
}

/// Iterates over consecutive boxes and stops at the first damaged box.
pub(super) fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, data, rest) = next_box(bytes)?;
        bytes = rest;
        Some((kind, data))
    })
}

pub(super) fn find<'a>(bytes: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).find(|(kind, _)| kind == wanted).map(|(_, data)| data)
}

/// A reader of big-endian numbers from the front of a slice.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (data, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(data)
    }

    /// Reads a number of 0 to 8 bytes.
    pub(super) fn number(&mut self, length: usize) -> Option<u64> {
        Some(self.take(length)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn u8(&mut self) -> Option<u8> {
        self.number(1).map(|number| number as u8)
    }

    fn u16(&mut self) -> Option<u16> {
        self.number(2).map(|number| number as u16)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.number(4).map(|number| number as u32)
    }

    /// Reads the version and the flags of a full box.
    pub(super) fn version(&mut self) -> Option<(u8, u32)> {
        let word = self.u32()?;
        Some(((word >> 24) as u8, word & 0xff_ffff))
    }

    /// Reads text up to a zero byte or the end.
    fn text(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|&byte| byte == 0);
        let text = &self.0[..end.unwrap_or(self.0.len())];
        self.0 = end.map(|end| &self.0[end + 1..]).unwrap_or_default();
        text
    }
}

#[derive(Debug)]
struct Item<'a> {
    id: u32,
    kind: [u8; 4],
    content_type: &'a [u8],
}

#[derive(Debug)]
struct Location {
    id: u32,
    /// Whether the offsets refer to the box `idat` instead of the file.
    is_inside: bool,
    /// Offset and length of each extent, in bytes. An extent of length 0 reaches to the end of the file or of `idat`.
    parts: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Reference {
    kind: [u8; 4],
    from: u32,
    to: Vec<u32>,
}

/// The contents of the box `meta`.
#[derive(Debug, Default)]
struct Meta<'a> {
    primary: u32,
    items: Vec<Item<'a>>,
    locations: Vec<Location>,
    references: Vec<Reference>,
    properties: Vec<([u8; 4], &'a [u8])>,
    /// Pairs of an item and the index of one of its properties, counted from 1.
    associations: Vec<(u32, usize)>,
    inside: &'a [u8],
}

/// Finds the main image: the primary item or, if the file has none, the first frame of a track.
///
/// # Errors
/// A message that says what is missing or damaged.
pub(super) fn read(file: &[u8]) -> Result<MainImage<'_>, String> {
    let meta = find(file, b"meta").map(|data| Meta::read(data).ok_or("the box meta is damaged")).transpose()?;
    match meta {
        Some(meta) if meta.item(meta.primary).is_some() => read_primary(file, &meta),
        _ => track::read(file).ok_or_else(|| "it contains no image".to_owned()),
    }
}

fn read_primary<'a>(file: &'a [u8], meta: &Meta<'a>) -> Result<MainImage<'a>, String> {
    let primary = meta.primary;
    let color = meta.coded(file, primary)?;
    let mut main = MainImage { size: color.size, color, ..MainImage::default() };
    for (kind, data) in meta.properties_of(primary) {
        match &kind {
            b"colr" => main.colors = read_colors(data).or(main.colors),
            b"irot" => main.rotation = data.first().map(|angle| angle & 3),
            b"imir" => main.mirror = data.first().map(|axis| axis & 1),
            _ => {}
        }
    }
    if let Some(alpha) = meta.alpha_of(primary) {
        main.alpha = Some(meta.coded(file, alpha)?);
        main.is_premultiplied = meta
            .references
            .iter()
            .any(|reference| reference.kind == *b"prem" && reference.from == primary && reference.to.contains(&alpha));
    } else if let Some(cells) = meta.alpha_of_cells(primary) {
        let cells = cells.into_iter().map(|id| meta.cell(file, id)).collect::<Result<_, _>>()?;
        main.alpha = Some(CodedImage { cells, ..main.color });
    }
    for item in meta.describing(primary) {
        if item.kind == *b"Exif" {
            // The first four bytes are the offset of the TIFF header. Pillow ignores them.
            main.exif = meta.joined(file, item.id).and_then(|data| data.get(4..).map(<[u8]>::to_vec));
        } else if item.kind == *b"mime" && item.content_type == b"application/rdf+xml" {
            main.xmp = meta.joined(file, item.id);
        }
    }
    Ok(main)
}

pub(super) fn read_colors(data: &[u8]) -> Option<ColorCodes> {
    let mut reader = Reader(data.strip_prefix(b"nclx")?);
    let (primaries, _, matrix) = (reader.u16()?, reader.u16()?, reader.u16()?);
    Some(ColorCodes { primaries, matrix, is_full_range: reader.u8()? & 0x80 != 0 })
}

impl<'a> Meta<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let mut meta = Self::default();
        for (kind, data) in boxes(data.get(4..)?) {
            let mut reader = Reader(data);
            match &kind {
                b"pitm" => {
                    let (version, _) = reader.version()?;
                    meta.primary = reader.number(if version == 0 { 2 } else { 4 })? as u32;
                }
                b"iinf" => meta.read_items(reader)?,
                b"iloc" => meta.read_locations(reader)?,
                b"iref" => meta.read_references(reader)?,
                b"iprp" => meta.read_properties(data)?,
                b"idat" => meta.inside = data,
                _ => {}
            }
        }
        Some(meta)
    }

    fn read_items(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, _) = reader.version()?;
        reader.number(if version == 0 { 2 } else { 4 })?;
        for (kind, data) in boxes(reader.0) {
            let mut entry = Reader(data);
            let (version, _) = entry.version()?;
            if kind != *b"infe" || version < 2 {
                continue;
            }
            let id = entry.number(if version == 2 { 2 } else { 4 })? as u32;
            entry.u16()?; // protection
            let kind = *entry.take(4)?.first_chunk()?;
            entry.text(); // name
            self.items.push(Item { id, kind, content_type: entry.text() });
        }
        Some(())
    }

    fn read_locations(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, _) = reader.version()?;
        let sizes = reader.u16()?;
        let size = |shift: u16| usize::from(sizes >> shift & 15);
        let (offset_size, length_size, base_size) = (size(12), size(8), size(4));
        let index_size = if version == 0 { 0 } else { size(0) };
        if [offset_size, length_size, base_size, index_size].iter().any(|&size| size > 8) {
            return None;
        }
        let id_size = if version < 2 { 2 } else { 4 };
        let mut total = 0;
        for _ in 0..reader.number(id_size)? {
            let id = reader.number(id_size)? as u32;
            let method = if version == 0 { 0 } else { reader.u16()? & 15 };
            reader.u16()?; // data reference
            let base = reader.number(base_size)?;
            let mut parts = Vec::new();
            let count = reader.u16()?;
            total += usize::from(count);
            if total > MAX_PARTS {
                return None;
            }
            for _ in 0..count {
                reader.number(index_size)?;
                let offset = base.checked_add(reader.number(offset_size)?)?;
                parts.push((offset, reader.number(length_size)?));
            }
            if method <= 1 {
                self.locations.push(Location { id, is_inside: method == 1, parts });
            }
        }
        Some(())
    }

    fn read_references(&mut self, mut reader: Reader<'a>) -> Option<()> {
        let (version, _) = reader.version()?;
        let id_size = if version == 0 { 2 } else { 4 };
        for (kind, data) in boxes(reader.0) {
            let mut reader = Reader(data);
            let from = reader.number(id_size)? as u32;
            let count = reader.u16()?;
            let to = (0..count).map(|_| reader.number(id_size).map(|id| id as u32)).collect::<Option<_>>()?;
            self.references.push(Reference { kind, from, to });
        }
        Some(())
    }

    fn read_properties(&mut self, data: &'a [u8]) -> Option<()> {
        for (kind, data) in boxes(data) {
            match &kind {
                b"ipco" => self.properties.extend(boxes(data)),
                b"ipma" => {
                    let mut reader = Reader(data);
                    let (version, flags) = reader.version()?;
                    for _ in 0..reader.u32()? {
                        let id = reader.number(if version == 0 { 2 } else { 4 })? as u32;
                        for _ in 0..reader.u8()? {
                            // The highest bit says whether the property is essential.
                            let index =
                                if flags & 1 == 1 { reader.u16()? & 0x7fff } else { u16::from(reader.u8()? & 0x7f) };
                            self.associations.push((id, index.into()));
                        }
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    fn properties_of(&self, id: u32) -> impl Iterator<Item = ([u8; 4], &'a [u8])> {
        let associations = self.associations.iter().filter(move |(item, _)| *item == id);
        associations.filter_map(|(_, index)| self.properties.get(index.checked_sub(1)?).copied())
    }

    fn property(&self, id: u32, wanted: &[u8; 4]) -> Option<&'a [u8]> {
        self.properties_of(id).find(|(kind, _)| kind == wanted).map(|(_, data)| data)
    }

    /// Returns the item that holds the alpha of the item `id`.
    fn alpha_of(&self, id: u32) -> Option<u32> {
        let auxiliary =
            self.references.iter().filter(|reference| reference.kind == *b"auxl" && reference.to.contains(&id));
        auxiliary
            .map(|reference| reference.from)
            .find(|&from| self.property(from, b"auxC").and_then(|data| data.get(4..)).is_some_and(is_alpha_kind))
    }

    /// Returns the alpha items of the cells of the grid `id`. Returns `None` if `id` is not a grid or a cell has no
    /// alpha; the image is then opaque.
    fn alpha_of_cells(&self, id: u32) -> Option<Vec<u32>> {
        self.item(id).filter(|item| item.kind == *b"grid")?;
        self.cells_of(id).iter().map(|&cell| self.alpha_of(cell)).collect()
    }

    fn item(&self, id: u32) -> Option<&Item<'a>> {
        self.items.iter().find(|item| item.id == id)
    }

    fn cells_of(&self, id: u32) -> &[u32] {
        let cells = self.references.iter().find(|reference| reference.kind == *b"dimg" && reference.from == id);
        cells.map(|reference| reference.to.as_slice()).unwrap_or_default()
    }

    fn describing(&self, id: u32) -> impl Iterator<Item = &Item<'a>> {
        self.items.iter().filter(move |item| {
            let mut references = self.references.iter();
            references
                .any(|reference| reference.kind == *b"cdsc" && reference.from == item.id && reference.to.contains(&id))
        })
    }

    fn parts<'f: 'a>(&self, file: &'f [u8], id: u32) -> Option<Vec<&'a [u8]>> {
        let location = self.locations.iter().find(|location| location.id == id)?;
        let source: &'a [u8] = if location.is_inside { self.inside } else { file };
        let part = |&(offset, length): &(u64, u64)| {
            let rest = source.get(usize::try_from(offset).ok()?..)?;
            if length == 0 { Some(rest) } else { rest.get(..usize::try_from(length).ok()?) }
        };
        let parts: Vec<&[u8]> = location.parts.iter().map(part).collect::<Option<_>>()?;
        // Reject overlapping extents: they could expand to more data than the file has.
        (parts.iter().map(|part| part.len()).sum::<usize>() <= source.len()).then_some(parts)
    }

    fn joined<'f: 'a>(&self, file: &'f [u8], id: u32) -> Option<Vec<u8>> {
        let parts = self.parts(file, id)?;
        (parts.iter().map(|part| part.len()).sum::<usize>() <= MAX_METADATA).then(|| parts.concat())
    }

    fn size(&self, id: u32) -> Option<(u32, u32)> {
        let mut reader = Reader(self.property(id, b"ispe")?.get(4..)?);
        Some((reader.u32()?, reader.u32()?))
    }

    fn cell<'f: 'a>(&self, file: &'f [u8], id: u32) -> Result<Cell<'a>, String> {
        let parts = self.parts(file, id).ok_or(MISSING)?;
        let operating_point = self.property(id, b"a1op").and_then(|data| data.first().copied()).unwrap_or(0);
        Ok(Cell { parts, operating_point })
    }

    /// Returns the frames of an item: a single frame, or the cells of a grid.
    fn coded<'f: 'a>(&self, file: &'f [u8], id: u32) -> Result<CodedImage<'a>, String> {
        let kind = self.item(id).ok_or("its image is missing")?.kind;
        let size = self.size(id).ok_or("its image has no size")?;
        match &kind {
            b"av01" => Ok(CodedImage { rows: 1, columns: 1, cells: vec![self.cell(file, id)?], size }),
            b"grid" => {
                let data = self.joined(file, id).ok_or(MISSING)?;
                let &[_, flags, rows, columns, ..] = data.as_slice() else { return Err(MISSING.to_owned()) };
                let mut reader = Reader(&data[4..]);
                let side = if flags & 1 == 0 { 2 } else { 4 };
                let (width, height) = (reader.number(side).ok_or(MISSING)?, reader.number(side).ok_or(MISSING)?);
                let (rows, columns) = (usize::from(rows) + 1, usize::from(columns) + 1);
                let cells = self.cells_of(id);
                if rows * columns > MAX_CELLS {
                    return Err(format!("its grid has {rows}x{columns} cells; at most {MAX_CELLS} are allowed"));
                }
                if cells.len() != rows * columns {
                    return Err(format!("its grid of {rows}x{columns} cells lists {} cells", cells.len()));
                }
                let cells = cells.iter().map(|&id| self.cell(file, id)).collect::<Result<_, _>>()?;
                Ok(CodedImage { rows, columns, cells, size: (width as u32, height as u32) })
            }
            kind => Err(format!("its image has the coding {}", kind.escape_ascii())),
        }
    }
}
