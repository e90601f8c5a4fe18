//! Reads the orientation of an image from EXIF and XMP, like Pillow's `exif_transpose`, and applies it.

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};

use crate::RgbImage;

/// Number of the tag `Orientation` of TIFF and EXIF.
const ORIENTATION: u16 = 0x0112;

/// Returns the orientation from an EXIF block or, if the block has no orientation tag, from an XMP packet.
///
/// If the EXIF block does not start with a TIFF header, the image is not rotated, and XMP is ignored too.
///
/// Source: `Image.getexif` and `ImageOps.exif_transpose` of Pillow.
pub(crate) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let code = match exif.map_or(Tag::Absent, read_exif) {
        Tag::Code(code) => Some(code),
        Tag::Invalid => None,
        Tag::Absent => xmp.and_then(read_xmp),
    };
    code.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// Returns whether the orientation exchanges width and height.
pub(crate) fn exchanges_axes(orientation: Orientation) -> bool {
    match orientation {
        Orientation::NoTransforms
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical
        | Orientation::Rotate180 => false,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            true
        }
    }
}

/// Rotates and mirrors the image to make it upright.
pub(crate) fn upright(picture: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let buffer = ImageBuffer::from_raw(picture.width(), picture.height(), picture.into_data());
    let mut image = DynamicImage::ImageRgb8(buffer.expect("an RGB image has three bytes per pixel"));
    image.apply_orientation(orientation);
    RgbImage::new(image.width(), image.height(), image.into_bytes()).expect("rotation keeps the number of pixels")
}

/// Returns whether an EXIF block has an orientation tag, valid or not.
pub(crate) fn has_tag(exif: &[u8]) -> bool {
    read_exif(exif) != Tag::Absent
}

/// The orientation tag in the first directory of an EXIF block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Absent,
    /// The tag exists, but its value is not a number from 1 to 8.
    Invalid,
    Code(u8),
}

/// Reads the first directory like Pillow's `ImageFileDirectory_v2.load`. Entries of unknown types are skipped. The
/// first entry that points outside the block ends the directory. If a tag is repeated, its last entry counts.
fn read_exif(mut block: &[u8]) -> Tag {
    while let Some(rest) = block.strip_prefix(b"Exif\0\0") {
        block = rest;
    }
    if block.is_empty() {
        return Tag::Absent;
    }
    let Some(order) = byte_order(block) else { return Tag::Invalid };
    let mut tag = Tag::Absent;
    let mut entries = || -> Option<()> {
        let directory = block.get(order.u32(block.get(4..)?)? as usize..)?;
        for at in 0..usize::from(order.u16(directory)?) {
            let entry = directory.get(2 + 12 * at..14 + 12 * at)?;
            let (number, kind, count) = (order.u16(entry)?, order.u16(&entry[2..])?, order.u32(&entry[4..])?);
            let Some(unit) = unit_size(kind) else { continue };
            let size = u64::from(count) * unit;
            let data = if size > 4 {
                let start = order.u32(&entry[8..])? as usize;
                block.get(start..)?.get(..usize::try_from(size).ok()?)?
            } else {
                &entry[8..8 + size as usize]
            };
            if number == ORIENTATION && !data.is_empty() {
                tag = order.code(kind, data).map_or(Tag::Invalid, Tag::Code);
            }
        }
        Some(())
    };
    entries();
    tag
}

/// Returns the byte order that a TIFF header declares. Source: `PREFIXES` in Pillow's `TiffImagePlugin.py`.
fn byte_order(block: &[u8]) -> Option<ByteOrder> {
    match block.get(..8)? {
        [b'I', b'I', 42, 0, ..] | [b'I', b'I', 0, 42, ..] => Some(ByteOrder::Little),
        [b'M', b'M', 0, 42 | 43, ..] | [b'M', b'M', 42, 0, ..] => Some(ByteOrder::Big),
        _ => None,
    }
}

/// Returns the size in bytes of one value of a type, or `None` if Pillow does not read the type.
fn unit_size(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy)]
enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    fn bytes<const N: usize>(self, bytes: &[u8]) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = *bytes.first_chunk()?;
        if let Self::Big = self {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn u16(self, bytes: &[u8]) -> Option<u16> {
        self.bytes(bytes).map(u16::from_le_bytes)
    }

    fn u32(self, bytes: &[u8]) -> Option<u32> {
        self.bytes(bytes).map(u32::from_le_bytes)
    }

    /// Returns the first value of an entry if it is a whole number from 1 to 8. Pillow does not treat unsigned bytes
    /// and text as numbers.
    fn code(self, kind: u16, data: &[u8]) -> Option<u8> {
        let number = match kind {
            3 => i64::from(self.u16(data)?),
            4 | 13 => i64::from(self.u32(data)?),
            6 => i64::from(data.first()?.cast_signed()),
            8 => i64::from(self.u16(data)?.cast_signed()),
            9 => i64::from(self.u32(data)?.cast_signed()),
            16 => i64::try_from(u64::from_le_bytes(self.bytes(data)?)).ok()?,
            5 => whole(i64::from(self.u32(data)?), i64::from(self.u32(&data[4..])?))?,
            10 => whole(i64::from(self.u32(data)?.cast_signed()), i64::from(self.u32(&data[4..])?.cast_signed()))?,
            11 => whole_float(f64::from(f32::from_bits(self.u32(data)?)))?,
            12 => whole_float(f64::from_le_bytes(self.bytes(data)?))?,
            _ => return None,
        };
        u8::try_from(number).ok().filter(|code| (1..=8).contains(code))
    }
}

fn whole(numerator: i64, denominator: i64) -> Option<i64> {
    (denominator != 0 && numerator % denominator == 0).then(|| numerator / denominator)
}

fn whole_float(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() < 256.0).then_some(value as i64)
}

/// Returns the digit of the first match of `tiff:Orientation(="|>)([0-9])`, which may be an attribute or an element.
pub(crate) fn read_xmp(packet: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut rest = packet;
    while let Some(at) = rest.windows(NAME.len()).position(|window| window == NAME) {
        rest = &rest[at + NAME.len()..];
        if let [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] = rest {
            return Some(digit - b'0');
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(entries: &[(u16, u16, u32, [u8; 4])]) -> Vec<u8> {
        let mut bytes = b"Exif\0\0MM\0*\0\0\0\x08".to_vec();
        bytes.extend((entries.len() as u16).to_be_bytes());
        for (tag, kind, count, data) in entries {
            bytes.extend(tag.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(count.to_be_bytes());
            bytes.extend(data);
        }
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn reads_orientation_of_every_numeric_type() {
        let read = |kind, data| read_exif(&block(&[(ORIENTATION, kind, 1, data)]));
        for (kind, data) in [(3, [0, 6, 0, 0]), (4, [0, 0, 0, 6]), (13, [0, 0, 0, 6]), (6, [6, 0, 0, 0])] {
            assert_eq!(read(kind, data), Tag::Code(6), "type {kind}");
        }
        assert_eq!(read(8, [0, 6, 0, 0]), Tag::Code(6));
        assert_eq!(read(9, [0, 0, 0, 6]), Tag::Code(6));
        assert_eq!(read(11, 6.0_f32.to_be_bytes()), Tag::Code(6));
        for (kind, data) in [(1, [6, 0, 0, 0]), (2, *b"6\0\0\0"), (7, [6; 4]), (3, [0, 9, 0, 0]), (9, [0xff; 4])] {
            assert_eq!(read(kind, data), Tag::Invalid, "type {kind}");
        }
        // A tag of an unknown type is treated as absent.
        assert_eq!(read(99, [0, 6, 0, 0]), Tag::Absent);
    }

    #[test]
    fn reads_rational_stored_outside_the_entry() {
        let mut bytes = block(&[(ORIENTATION, 5, 1, [0, 0, 0, 26])]);
        assert_eq!(read_exif(&bytes), Tag::Absent);
        bytes.extend([0, 0, 0, 12, 0, 0, 0, 2]);
        assert_eq!(read_exif(&bytes), Tag::Code(6));
    }

    #[test]
    fn last_of_two_tags_wins_and_damage_ends_the_directory() {
        let short = |value| (ORIENTATION, 3, 1, [0, value, 0, 0]);
        let outside = (0x010e, 2, 900, [0, 0, 0, 8]);
        assert_eq!(read_exif(&block(&[short(3), short(6)])), Tag::Code(6));
        assert_eq!(read_exif(&block(&[short(3), outside, short(6)])), Tag::Code(3));
        assert_eq!(read_exif(&block(&[outside, short(6)])), Tag::Absent);
        assert_eq!(read_exif(b"Exif\0\0XX"), Tag::Invalid);
        assert_eq!(read_exif(b"Exif\0\0Exif\0\0"), Tag::Absent);
        for end in 0..block(&[short(6)]).len() {
            read_exif(&block(&[short(6)])[..end]);
        }
    }

    #[test]
    fn xmp_is_used_if_exif_has_no_orientation() {
        let packet = b"<x tiff:Orientation='3' tiff:Orientation=\"8\">";
        let other = block(&[(0x0100, 3, 1, [0, 1, 0, 0])]);
        assert_eq!(orientation(None, Some(packet)), Orientation::Rotate270);
        assert_eq!(orientation(Some(&other), Some(packet)), Orientation::Rotate270);
        assert_eq!(orientation(Some(&[]), Some(b"<tiff:Orientation>6<")), Orientation::Rotate90);
        assert_eq!(orientation(Some(&block(&[(ORIENTATION, 3, 1, [0; 4])])), Some(packet)), Orientation::NoTransforms);
        assert_eq!(orientation(Some(b"XX"), Some(packet)), Orientation::NoTransforms);
        assert_eq!(orientation(None, Some(b"tiff:Orientation=\"9\"")), Orientation::NoTransforms);
        assert_eq!(orientation(None, None), Orientation::NoTransforms);
    }
}
