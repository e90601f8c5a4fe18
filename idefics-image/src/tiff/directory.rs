//! Parses the container: header, directories (IFDs), tag values.
//!
//! Source: TIFF 6.0 sections 2 and 8, and the BigTIFF proposal. Damaged directories are handled as in
//! `ImageFileDirectory_v2.load` of Pillow's `TiffImagePlugin.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::TiffError;
use super::tag::Tag;

/// Byte order of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    pub(super) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        }
    }
}

/// The file header.
#[derive(Debug, Clone, Copy)]
struct Header<'a> {
    file: &'a [u8],
    order: ByteOrder,
    /// Whether the file is a BigTIFF: offsets and counts have 64 bits.
    is_big: bool,
}

/// The type and the values of one tag.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    kind: u16,
    data: &'a [u8],
}

/// The values of a tag that holds whole numbers. They are parsed only when they are used, because a tag may have
/// millions of values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers<'a> {
    entry: Entry<'a>,
    order: ByteOrder,
}

impl Numbers<'_> {
    /// Returns the number of values, at least 1.
    pub(super) fn len(&self) -> usize {
        self.entry.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<u64> {
        self.entry.whole_number(self.order, index)
    }
}

/// The tags of one page.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    pub(super) file: &'a [u8],
    pub(super) order: ByteOrder,
    entries: BTreeMap<Tag, Entry<'a>>,
    /// Whether the tags ImageWidth or ImageLength are repeated with a different value.
    pub(super) has_two_sizes: bool,
}

impl<'a> Directory<'a> {
    /// Reads the tags of a page, counted from 1.
    pub(super) fn read_page(file: &'a [u8], page: NonZeroU32) -> Result<Self, TiffError> {
        let (header, mut at) = Header::read(file)?;
        let mut seen = BTreeSet::from([at]);
        for pages in 1..page.get() {
            at = header.next_directory(at).unwrap_or(0);
            if at == 0 || !seen.insert(at) {
                return Err(TiffError::NoSuchPage(pages));
            }
        }
        let (entries, has_two_sizes) = header.entries(at);
        Ok(Self { file, order: header.order, entries, has_two_sizes })
    }

    pub(super) fn contains(&self, tag: Tag) -> bool {
        self.entries.contains_key(&tag)
    }

    /// Returns the bytes of a tag as stored in the file.
    pub(super) fn bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        self.entries.get(&tag).map(|entry| entry.data)
    }

    /// Returns the values of a tag that holds whole numbers, or `None` if the tag is missing. Only the first `most`
    /// values are validated.
    pub(super) fn numbers(&self, tag: Tag, most: usize) -> Result<Option<Numbers<'a>>, TiffError> {
        let Some(&entry) = self.entries.get(&tag) else { return Ok(None) };
        let numbers = Numbers { entry, order: self.order };
        let checked = numbers.len().min(most);
        if (0..checked).any(|index| numbers.get(index).is_none()) {
            return Err(not_whole(tag));
        }
        Ok(Some(numbers))
    }

    /// Returns the first value of a tag that holds whole numbers, or `None` if the tag is missing.
    pub(super) fn value(&self, tag: Tag) -> Result<Option<u64>, TiffError> {
        let Some(entry) = self.entries.get(&tag) else { return Ok(None) };
        entry.whole_number(self.order, 0).map(Some).ok_or_else(|| not_whole(tag))
    }

    /// Returns the first values of a tag as 16-bit numbers, at most `most` of them, or `None` if the tag is missing.
    pub(super) fn shorts(&self, tag: Tag, most: usize) -> Result<Option<Vec<u16>>, TiffError> {
        let Some(numbers) = self.numbers(tag, most)? else { return Ok(None) };
        let short = |value| u16::try_from(value).map_err(|_| bad_value(tag, value));
        (0..most).map_while(|index| numbers.get(index)).map(short).collect::<Result<_, _>>().map(Some)
    }

    /// Returns the first `N` values of a tag that holds fractions or whole numbers. Returns `None` if the tag is
    /// missing, has another type, or has fewer values.
    pub(super) fn floats<const N: usize>(&self, tag: Tag) -> Option<[f32; N]> {
        const RATIONAL: u16 = 5;
        let entry = self.entries.get(&tag)?;
        let mut values = [0.0; N];
        if entry.kind == RATIONAL {
            let (pairs, _) = entry.data.as_chunks::<8>();
            for (value, &[a, b, c, d, e, f, g, h]) in values.iter_mut().zip(pairs.get(..N)?) {
                let (above, below) = (self.order.u32([a, b, c, d]), self.order.u32([e, f, g, h]));
                *value = if below == 0 { 0.0 } else { (f64::from(above) / f64::from(below)) as f32 };
            }
        } else {
            for (index, value) in values.iter_mut().enumerate() {
                *value = entry.whole_number(self.order, index)? as f32;
            }
        }
        Some(values)
    }
}

pub(super) fn bad_value(tag: Tag, value: u64) -> TiffError {
    TiffError::damaged(format!("the tag {} ({}) has the invalid value {value}", tag.name(), tag.0))
}

pub(super) fn missing(tag: Tag) -> TiffError {
    TiffError::damaged(format!("the tag {} ({}) is missing", tag.name(), tag.0))
}

fn not_whole(tag: Tag) -> TiffError {
    TiffError::damaged(format!("the tag {} ({}) has a value that is negative or not a whole number", tag.name(), tag.0))
}

impl<'a> Header<'a> {
    /// Reads the header. Also returns the offset of the first directory.
    fn read(file: &'a [u8]) -> Result<(Self, u64), TiffError> {
        let short = || TiffError::damaged("the file ends early");
        let (mark, _) = file.split_first_chunk::<4>().ok_or_else(short)?;
        let order = if mark[0] == b'I' { ByteOrder::Little } else { ByteOrder::Big };
        // Some writers swap the bytes of the version number; Pillow accepts both orders.
        let is_big = mark[2..].contains(&43);
        let header = Self { file, order, is_big };
        let first = if is_big { header.u64(8) } else { header.u32(4).map(u64::from) };
        Ok((header, first.ok_or_else(short)?))
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(self.order.u16(*self.file.get(at..)?.first_chunk()?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(self.order.u32(*self.file.get(at..)?.first_chunk()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(self.order.u64(*self.file.get(at..)?.first_chunk()?))
    }

    /// Returns the number of entries of a directory, and the position of the first entry.
    fn count(&self, at: u64) -> Option<(u64, usize)> {
        let at = usize::try_from(at).ok()?;
        if self.is_big { Some((self.u64(at)?, at + 8)) } else { Some((u64::from(self.u16(at)?), at + 2)) }
    }

    fn entry_length(&self) -> usize {
        if self.is_big { 20 } else { 12 }
    }

    fn next_directory(&self, at: u64) -> Option<u64> {
        let (count, first) = self.count(at)?;
        let end = usize::try_from(count).ok()?.checked_mul(self.entry_length())?.checked_add(first)?;
        if self.is_big { self.u64(end) } else { self.u32(end).map(u64::from) }
    }

    /// Reads the entries of a directory like Pillow, up to the first entry that reaches outside the file. If a tag is
    /// repeated, its last entry counts. Also returns whether a tag of the image size is repeated with a different
    /// value.
    fn entries(&self, at: u64) -> (BTreeMap<Tag, Entry<'a>>, bool) {
        let (mut entries, mut has_two_sizes) = (BTreeMap::<Tag, Entry<'a>>::new(), false);
        let Some((count, first)) = self.count(at) else { return (entries, has_two_sizes) };
        let length = self.entry_length();
        let rows = self.file.get(first..).unwrap_or_default().chunks_exact(length);
        for (row, index) in rows.zip(0..count) {
            let at = first + index as usize * length;
            let (Some(tag), Some(kind)) = (self.u16(at), self.u16(at + 2)) else { break };
            let Some(width) = type_width(kind) else { continue };
            let (count, inline) =
                if self.is_big { (self.u64(at + 4), &row[12..]) } else { (self.u32(at + 4).map(u64::from), &row[8..]) };
            let Some(size) = count.and_then(|count| usize::try_from(count).ok()?.checked_mul(width)) else { break };
            let data = match inline.get(..size) {
                Some(data) => Some(data),
                None => self.out_of_line(at + length - inline.len(), size),
            };
            let Some(data) = data else { break };
            let tag = Tag(tag);
            if tag.is_known() && !data.is_empty() {
                let earlier = entries.insert(tag, Entry { kind, data });
                let is_size = matches!(tag, Tag::IMAGE_WIDTH | Tag::IMAGE_LENGTH);
                has_two_sizes |= is_size && earlier.is_some_and(|earlier| earlier.data != data);
            }
        }
        (entries, has_two_sizes)
    }

    fn out_of_line(&self, at: usize, size: usize) -> Option<&'a [u8]> {
        let offset = if self.is_big { self.u64(at)? } else { u64::from(self.u32(at)?) };
        self.file.get(usize::try_from(offset).ok()?..)?.get(..size)
    }
}

/// Returns the size in bytes of one value of a type, or `None` if Pillow skips the type.
fn type_width(kind: u16) -> Option<usize> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
}

impl Entry<'_> {
    /// Returns the number of values.
    fn len(&self) -> usize {
        type_width(self.kind).map_or(0, |width| self.data.len() / width)
    }

    /// Returns the value at an index, or `None` if there is no such value, or if it is negative or not a whole number.
    fn whole_number(&self, order: ByteOrder, index: usize) -> Option<u64> {
        let width = type_width(self.kind)?;
        let bytes = self.data.get(index.checked_mul(width)?..)?.get(..width)?;
        match (self.kind, bytes) {
            (1 | 7, &[byte]) => Some(u64::from(byte)),
            (6, &[byte]) => u64::try_from(byte.cast_signed()).ok(),
            (3, &[a, b]) => Some(u64::from(order.u16([a, b]))),
            (8, &[a, b]) => u64::try_from(order.u16([a, b]).cast_signed()).ok(),
            (4 | 13, &[a, b, c, d]) => Some(u64::from(order.u32([a, b, c, d]))),
            (9, &[a, b, c, d]) => u64::try_from(order.u32([a, b, c, d]).cast_signed()).ok(),
            (16, &[a, b, c, d, e, f, g, h]) => Some(order.u64([a, b, c, d, e, f, g, h])),
            _ => None,
        }
    }
}
