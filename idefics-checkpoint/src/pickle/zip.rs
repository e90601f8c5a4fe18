//! Reads the directory of a zip archive whose entries are not compressed.
//!
//! Values that the format stores twice must agree, every structure must be where the format says, and entries must not
//! overlap. These checks ensure that each entry is one byte range of the file.
//!
//! Source: APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::error::PickleFault;
use super::limits::{MAX_ENTRIES, MAX_NAME_BYTES, MAX_PROGRAM_BYTES};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

const END_BYTES: usize = 22;
const END_64_BYTES: usize = 56;
const LOCATOR_64_BYTES: usize = 20;

/// The magic number of the format before PyTorch 1.6, `0x1950a86a20f9469cfc6c`, as a pickled integer.
const LEGACY_MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Flag bits that are accepted: bit 3 (the sizes follow the data) and bit 11 (the name is UTF-8).
const ACCEPTED_FLAGS: u16 = 1 << 3 | 1 << 11;
/// Flag bits for encryption: traditional (bit 0), strong (bit 6), and encryption of the directory (bit 13).
const ENCRYPTION_FLAGS: u16 = 1 | 1 << 6 | 1 << 13;

/// Byte range of an entry's data in the file, and its checksum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) start: usize,
    pub(super) end: usize,
    crc: u32,
}

/// The entries of a zip archive. Their names are relative to the single top-level folder of the archive.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    file: &'a [u8],
    entries: BTreeMap<&'a str, Entry>,
}

/// An entry as described in the directory.
struct Central<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    crc: u32,
    size: u64,
    local_at: u64,
}

fn fault(at: usize, reason: impl Into<String>) -> PickleFault {
    PickleFault::Zip { at: at as u64, reason: reason.into() }
}

impl<'a> Archive<'a> {
    /// Reads the directory of `file` and checks that all entries precede it and do not overlap.
    pub(super) fn read(file: &'a [u8]) -> Result<Self, PickleFault> {
        check_start(file)?;
        let (directory_at, directory_end, count) = find_directory(file)?;
        if count > MAX_ENTRIES {
            return Err(PickleFault::Limit { what: "zip entries", found: count, limit: MAX_ENTRIES });
        }
        let mut cursor = Cursor::new(&file[..directory_end], directory_at);
        let mut entries = BTreeMap::new();
        let mut ranges = Vec::new();
        let mut folder = None;
        for _ in 0..count {
            let at = cursor.at();
            let central = central_entry(&mut cursor)?;
            let (this_folder, name) = split_name(central.name)?;
            if *folder.get_or_insert(this_folder) != this_folder {
                return Err(fault(at, format!("an entry is in folder {this_folder:?}, the first in {folder:?}")));
            }
            let entry = locate(&file[..directory_at], &central)?;
            ranges.push((central.local_at, entry.end));
            if entries.insert(name, entry).is_some() {
                return Err(PickleFault::DuplicateEntry { entry: name.to_owned() });
            }
        }
        if cursor.left() > 0 {
            return Err(fault(cursor.at(), format!("{} bytes are left after the {count} entries", cursor.left())));
        }
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[0].1 as u64 > pair[1].0) {
            Some(pair) => Err(fault(pair[0].1, "two entries overlap")),
            None => Ok(Self { file, entries }),
        }
    }

    /// Returns whether there is an entry named `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Returns the entry named `name`.
    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// Returns the keys of the storages: the names of the entries in `data/`, without `data/`.
    pub(super) fn storages(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().filter_map(|name| name.strip_prefix("data/"))
    }

    /// Returns whether the archive was written by `torch.jit.save`.
    pub(super) fn is_torch_script(&self) -> bool {
        self.entries.keys().any(|name| *name == "constants.pkl" || name.starts_with("code/"))
    }

    /// Returns the bytes of an entry that describes the file, such as `data.pkl`, after checking its size and checksum.
    ///
    /// A checksum of 0 is not checked, because PyTorch writes 0 after `torch.serialization.set_crc32_options(False)`.
    pub(super) fn checked(&self, name: &str) -> Result<&'a [u8], PickleFault> {
        let entry = self.entry(name).ok_or_else(|| PickleFault::EntryMissing { entry: name.to_owned() })?;
        let bytes = &self.file[entry.start..entry.end];
        if bytes.len() > MAX_PROGRAM_BYTES {
            let (found, limit) = (bytes.len() as u64, MAX_PROGRAM_BYTES as u64);
            return Err(PickleFault::Limit { what: "bytes in an entry that describes the file", found, limit });
        }
        let found = if entry.crc == 0 { 0 } else { crc32fast::hash(bytes) };
        if found != entry.crc {
            return Err(PickleFault::Checksum { entry: name.to_owned(), expected: entry.crc, found });
        }
        Ok(bytes)
    }
}

/// Checks the first bytes, so that other kinds of files get a specific error.
fn check_start(file: &[u8]) -> Result<(), PickleFault> {
    let Some(start) = file.first_chunk::<4>() else {
        return Err(PickleFault::Truncated { found: file.len() as u64 });
    };
    // In the legacy format, the magic number follows the protocol number and, since protocol 4, a frame header.
    if start[0] == 0x80 && file[..file.len().min(32)].windows(12).any(|bytes| bytes == LEGACY_MAGIC) {
        return Err(PickleFault::Legacy);
    }
    match u32::from_le_bytes(*start) {
        LOCAL => Ok(()),
        _ => Err(PickleFault::NotZip { start: *start }),
    }
}

/// Finds the directory. Returns its start and end offset in the file, and its number of entries.
///
/// `torch.save` writes no archive comment, so the end record must be the last bytes of the file.
fn find_directory(file: &[u8]) -> Result<(usize, usize, u64), PickleFault> {
    let truncated = || PickleFault::Truncated { found: file.len() as u64 };
    let end_at = file.len().checked_sub(END_BYTES).ok_or_else(truncated)?;
    let mut end = Cursor::new(file, end_at);
    let (signature, disks) = (end.u32(), end.u32());
    let (here, count) = (end.u16(), end.u16().ok_or_else(truncated)?);
    let (size, at) = (end.u32().ok_or_else(truncated)?, end.u32().ok_or_else(truncated)?);
    if signature != Some(END) {
        return Err(truncated());
    }
    if disks != Some(0) || here != Some(count) || end.u16() != Some(0) {
        return Err(fault(end_at, "the archive has several disks or a comment"));
    }
    let (mut count, mut size, mut at) = (u64::from(count), u64::from(size), u64::from(at));

    let mut directory_end = end_at;
    let locator_at = end_at.saturating_sub(LOCATOR_64_BYTES);
    let mut locator = Cursor::new(file, locator_at);
    if locator.u32() == Some(LOCATOR_64) {
        let record_at = locator_at.checked_sub(END_64_BYTES).ok_or_else(truncated)?;
        if (locator.u32(), locator.u64(), locator.u32()) != (Some(0), Some(record_at as u64), Some(1)) {
            return Err(fault(locator_at, "the 64-bit end record is not directly before its locator"));
        }
        let wide = end_64(file, record_at)
            .ok_or_else(|| fault(record_at, "the 64-bit end record is damaged, or the archive has several parts"))?;
        for ((narrow, limit), wide) in [(count, 0xffff), (size, 0xffff_ffff), (at, 0xffff_ffff)].into_iter().zip(wide) {
            if narrow != wide && narrow != limit {
                return Err(fault(end_at, format!("the end record has {narrow}, the 64-bit end record has {wide}")));
            }
        }
        [count, size, at] = wide;
        directory_end = record_at;
    }
    if at.checked_add(size) != Some(directory_end as u64) {
        return Err(fault(end_at, format!("the directory ({size} bytes at {at}) does not end at {directory_end}")));
    }
    Ok((directory_end - size as usize, directory_end, count))
}

/// Reads the number of entries, the size and the offset of the directory from its 64-bit end record. Returns `None` if
/// the record has extensions or the archive has several disks.
fn end_64(file: &[u8], at: usize) -> Option<[u64; 3]> {
    let mut cursor = Cursor::new(file, at);
    let (signature, size, _versions) = (cursor.u32()?, cursor.u64()?, cursor.u32()?);
    let (disk, start_disk, here, count) = (cursor.u32()?, cursor.u32()?, cursor.u64()?, cursor.u64()?);
    let plain = signature == END_64 && size == END_64_BYTES as u64 - 12 && disk == 0 && start_disk == 0;
    (plain && here == count).then_some([count, cursor.u64()?, cursor.u64()?])
}

/// Parses one entry of the directory.
fn central_entry<'a>(cursor: &mut Cursor<'a>) -> Result<Central<'a>, PickleFault> {
    let at = cursor.at();
    let mut read = || {
        let (signature, _versions, flags, method) = (cursor.u32()?, cursor.u32()?, cursor.u16()?, cursor.u16()?);
        let (_time, crc) = (cursor.u32()?, cursor.u32()?);
        let (packed, size) = (cursor.u32()?, cursor.u32()?);
        let (name_len, extra_len, comment_len) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
        let (disk, _attributes, local_at) = (cursor.u16()?, cursor.take(6)?, cursor.u32()?);
        let (name, extra) = (cursor.take(name_len.into())?, cursor.take(extra_len.into())?);
        cursor.take(comment_len.into())?;
        let [size, packed, local_at] = widen(extra, [size, packed, local_at])?;
        (signature == CENTRAL && disk == 0).then_some((name, flags, method, crc, size, packed, local_at))
    };
    let (name, flags, method, crc, size, packed, local_at) =
        read().ok_or_else(|| fault(at, "not an entry of the directory"))?;
    let feature = match () {
        () if flags & ENCRYPTION_FLAGS != 0 => "encrypted".to_owned(),
        () if method != 0 => format!("compressed (method {method})"),
        () if flags & !ACCEPTED_FLAGS != 0 => format!("marked with flags {flags:#06x}"),
        () if size != packed => format!("stored in {packed} bytes instead of {size}"),
        () => return Ok(Central { name, flags, method, crc, size, local_at }),
    };
    Err(PickleFault::EntryFeature { entry: String::from_utf8_lossy(name).into_owned(), feature })
}

/// Replaces each number whose bits are all ones by its 64-bit value. The extra field lists these values in the order of
/// the numbers. Returns `None` if the extra field lacks a value.
fn widen<const N: usize>(extra: &[u8], narrow: [u32; N]) -> Option<[u64; N]> {
    let mut wide = narrow.map(u64::from);
    if !narrow.contains(&u32::MAX) {
        return Some(wide);
    }
    let mut cursor = Cursor::new(extra, 0);
    while cursor.left() > 0 {
        let (id, length) = (cursor.u16()?, cursor.u16()?);
        let mut field = Cursor::new(cursor.take(length.into())?, 0);
        if id == 1 {
            for number in wide.iter_mut().filter(|number| **number == u64::from(u32::MAX)) {
                *number = field.u64()?;
            }
            return Some(wide);
        }
    }
    None
}

/// Splits the path of an entry into its folder and its name there. Rejects paths that are unsafe on any operating
/// system.
fn split_name(name: &[u8]) -> Result<(&str, &str), PickleFault> {
    let fault = |reason| PickleFault::EntryName { entry: String::from_utf8_lossy(name).into_owned(), reason };
    if name.len() > MAX_NAME_BYTES {
        let (found, limit) = (name.len() as u64, MAX_NAME_BYTES as u64);
        return Err(PickleFault::Limit { what: "bytes in the name of a zip entry", found, limit });
    }
    let name = std::str::from_utf8(name).map_err(|_| fault("the name is not UTF-8"))?;
    if name.contains(|c: char| c == '\\' || c == ':' || c.is_control()) {
        return Err(fault("the name contains a backslash, a colon or a control character"));
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(fault("the name is an absolute path or a folder, or leads out of the archive"));
    }
    name.split_once('/').ok_or_else(|| fault("the name is in no folder"))
}

/// Finds the byte range of an entry's data. `file` is the part of the file before the directory.
///
/// The local header may omit the checksum and the sizes (flag bit 3). All its other fields must agree with the
/// directory.
fn locate(file: &[u8], central: &Central<'_>) -> Result<Entry, PickleFault> {
    let at = usize::try_from(central.local_at).unwrap_or(usize::MAX);
    let entry = || String::from_utf8_lossy(central.name);
    let mut cursor = Cursor::new(file, at);
    let mut read = || {
        let (signature, _version) = (cursor.u32()?, cursor.u16()?);
        let (flags, method, _time) = (cursor.u16()?, cursor.u16()?, cursor.u32()?);
        let (crc, packed, size) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (name_len, extra_len) = (cursor.u16()?, cursor.u16()?);
        let (name, extra) = (cursor.take(name_len.into())?, cursor.take(extra_len.into())?);
        let [size, packed] = widen(extra, [size, packed])?;
        let open = flags & 1 << 3 != 0 && crc == 0 && size == 0 && packed == 0;
        let same = open || (crc, size, packed) == (central.crc, central.size, central.size);
        let same = same && (flags, method, name) == (central.flags, central.method, central.name);
        (signature == LOCAL).then_some(same)
    };
    match read() {
        None => return Err(fault(at, format!("no local header for entry {:?}", entry()))),
        Some(false) => {
            return Err(fault(at, format!("the local header of entry {:?} disagrees with the directory", entry())));
        }
        Some(true) => {}
    }
    let start = cursor.at();
    let fits = usize::try_from(central.size).ok().and_then(|size| cursor.take(size));
    if fits.is_none() {
        let (size, left) = (central.size, cursor.left());
        return Err(fault(at, format!("entry {:?} has {size} bytes, but only {left} are left", entry())));
    }
    Ok(Entry { start, end: cursor.at(), crc: central.crc })
}
