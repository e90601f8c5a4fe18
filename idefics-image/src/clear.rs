//! The one transparent color that the reference still sees in a file: its loader drops alpha, but not a color key.

use crate::Format;

const WHITE: [u8; 3] = [255; 3];

/// What a file declares clear besides an alpha channel, as the reference takes it.
///
/// Source: `load_image` (EXIF, then Pillow's `convert("RGB")`, which hands `info["transparency"]` on if it is one
/// color) and `convert_to_rgb` of the image processor, which lays an image with that entry over white.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Clear {
    /// Behind the loader, every pixel of this color becomes white, whatever made it that color.
    pub(crate) key: Option<[u8; 3]>,
    /// With and without the loader, pixels without any opacity become this.
    pub(crate) blank: Option<[u8; 3]>,
}

impl Clear {
    /// Reads the declarations before the first pixels. A file that breaks off there has none, and does not decode.
    pub(crate) fn of_file(format: Format, bytes: &[u8]) -> Self {
        match format {
            Format::Png => of_png(bytes).unwrap_or_default(),
            Format::Gif => of_gif(bytes).unwrap_or_default(),
            Format::Jpeg | Format::WebP | Format::Bmp => Self::default(),
        }
    }
}

/// The color of a `tRNS` chunk, with Pillow's ways: grey of 2 and 4 bits is compared after it was stretched to 8 and the
/// key was not, and of a 16-bit key in color the low bytes count. In 16-bit grey, where Pillow clips and we keep the
/// upper byte, the key counts if it is black, as in Pillow.
fn of_png(bytes: &[u8]) -> Option<Clear> {
    const GREY: u8 = 0;
    const RGB: u8 = 2;
    const PALETTE: u8 = 3;

    let (depth, color_type) = (*bytes.get(24)?, *bytes.get(25)?);
    let (mut palette, mut transparency): (&[u8], &[u8]) = (&[], &[]);
    let mut rest = bytes.get(8..)?;
    loop {
        let (length, tail) = rest.split_first_chunk()?;
        let (kind, tail) = tail.split_first_chunk::<4>()?;
        let (data, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        match kind {
            b"PLTE" => palette = data,
            b"tRNS" => transparency = data,
            b"IDAT" => break,
            _ => {}
        }
        rest = tail.get(4..)?;
    }
    match (color_type, depth) {
        (GREY, 16) => {
            let key: &[u8; 2] = transparency.first_chunk()?;
            Some(Clear { blank: (*key == [0; 2]).then_some(WHITE), ..Clear::default() })
        }
        (GREY, _) => {
            let &[high, low] = transparency.first_chunk()?;
            Some(Clear { key: Some([if high == 0 { low } else { 255 }; 3]), ..Clear::default() })
        }
        (RGB, _) => {
            let &[_, red, _, green, _, blue] = transparency.first_chunk()?;
            Some(Clear { key: Some([red, green, blue]), ..Clear::default() })
        }
        (PALETTE, _) => {
            let index = transparency.iter().position(|&alpha| alpha == 0)?;
            let is_only = transparency.iter().enumerate().all(|(at, &alpha)| at == index || alpha == 255);
            is_only.then(|| Clear { key: Some(entry(palette, index).unwrap_or([0; 3])), ..Clear::default() })
        }
        _ => None,
    }
}

/// The transparent color of the first frame. What that frame leaves bare of the canvas is transparent too or, where it
/// has no such color, of the palette's first color.
fn of_gif(bytes: &[u8]) -> Option<Clear> {
    const EXTENSION: u8 = 0x21;
    const GRAPHIC_CONTROL: u8 = 0xf9;
    const IMAGE: u8 = 0x2c;

    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let (mut palette, mut rest) = bytes.get(13..)?.split_at_checked(table(bytes[10]))?;
    let mut transparent = None;
    loop {
        match *rest {
            [EXTENSION, label, ref blocks @ ..] => {
                if let (GRAPHIC_CONTROL, &[4, flags, _, _, index, ..]) = (label, blocks)
                    && flags & 1 == 1
                {
                    transparent = Some(usize::from(index));
                }
                rest = blocks;
                while let (&length @ 1.., tail) = rest.split_first()? {
                    rest = tail.get(usize::from(length)..)?;
                }
                rest = &rest[1..];
            }
            [IMAGE, ref descriptor @ ..] => {
                let length = table(*descriptor.get(8)?);
                if length > 0 {
                    palette = descriptor.get(9..9 + length)?;
                }
                break;
            }
            [_, ref tail @ ..] => rest = tail,
            [] => return None,
        }
    }
    // Pillow reads a palette in which every index is its own grey as a grey picture.
    let is_grey =
        palette.chunks_exact(3).enumerate().all(|(at, color)| color.iter().all(|&value| at == usize::from(value)));
    let beyond = |index: usize| if is_grey { [index as u8; 3] } else { [0; 3] };
    let key = transparent.map(|index| entry(palette, index).unwrap_or_else(|| beyond(index)));
    let bare = entry(palette, 0).unwrap_or_default();
    Some(Clear { key, blank: Some(if key.is_some() { WHITE } else { bare }) })
}

fn entry(palette: &[u8], index: usize) -> Option<[u8; 3]> {
    palette.get(3 * index..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(depth: u8, color_type: u8, chunks: &[(&[u8; 4], &[u8])]) -> Clear {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01".to_vec();
        bytes.extend([depth, color_type, 0, 0, 0, 0, 0, 0, 0]);
        for (kind, data) in chunks.iter().chain(&[(b"IDAT", &[][..])]) {
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(*kind);
            bytes.extend_from_slice(data);
            bytes.extend([0; 4]);
        }
        Clear::of_file(Format::Png, &bytes)
    }

    fn key(color: [u8; 3]) -> Clear {
        Clear { key: Some(color), blank: None }
    }

    #[test]
    fn one_clear_palette_entry_is_a_color_and_more_are_none() {
        let palette = (b"PLTE", &[1, 2, 3, 4, 5, 6, 7, 8, 9][..]);
        let of = |transparency: &[u8]| png(8, 3, &[palette, (b"tRNS", transparency)]);
        assert_eq!(of(&[255, 0]), key([4, 5, 6]));
        assert_eq!(of(&[0, 255, 255]), key([1, 2, 3]));
        assert_eq!(of(&[255, 255, 255, 0]), key([0; 3]));
        for none in [&[][..], &[255, 255], &[0, 0], &[0, 254], &[128]] {
            assert_eq!(of(none), Clear::default(), "{none:?}");
        }
    }

    #[test]
    fn grey_and_rgb_keys_are_read_as_pillow_reads_them() {
        let of = |depth, color_type, data: &[u8]| png(depth, color_type, &[(b"tRNS", data)]);
        assert_eq!(of(8, 0, &[0, 7]), key([7; 3]));
        assert_eq!(of(2, 0, &[0, 2]), key([2; 3]));
        assert_eq!(of(8, 0, &[1, 7]), key([255; 3]));
        assert_eq!(of(16, 0, &[0, 0]), Clear { key: None, blank: Some(WHITE) });
        assert_eq!(of(16, 2, &[9, 1, 9, 2, 9, 3]), key([1, 2, 3]));
        for (depth, color_type, data) in [(8, 0, &[7][..]), (16, 0, &[7, 0]), (8, 2, &[0, 1, 0, 2]), (8, 6, &[0; 6])] {
            assert_eq!(of(depth, color_type, data), Clear::default());
        }
    }

    #[test]
    fn a_gif_leaves_its_canvas_clear_or_in_the_first_color() {
        let of = |global: &[u8], control: &[u8], local: &[u8]| {
            let table = |colors: &[u8]| if colors.is_empty() { 0 } else { 0x80 };
            let image = [&[0x2c, 0, 0, 0, 0, 1, 0, 1, 0, table(local)], local].concat();
            let screen = [&b"GIF89a\x01\0\x01\0"[..], &[table(global), 0, 0], global].concat();
            Clear::of_file(Format::Gif, &[&screen, control, &b"\x21\xfe\x01c\0"[..], &image].concat())
        };
        let (first, second) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        let clear = |index| [0x21, 0xf9, 4, 1, 0, 0, index, 0];
        assert_eq!(of(&first, &clear(1), &[]), Clear { key: Some([4, 5, 6]), blank: Some(WHITE) });
        assert_eq!(of(&first, &clear(0), &second), Clear { key: Some([7, 8, 9]), blank: Some(WHITE) });
        assert_eq!(of(&first, &clear(2), &[]), Clear { key: Some([0; 3]), blank: Some(WHITE) });
        assert_eq!(of(&[0, 0, 0, 1, 1, 1], &clear(2), &[]), Clear { key: Some([2; 3]), blank: Some(WHITE) });
        assert_eq!(of(&first, &[], &[]), Clear { key: None, blank: Some([1, 2, 3]) });
        assert_eq!(of(&first, &[0x21, 0xf9, 4, 0, 0, 0, 1, 0], &second), Clear { key: None, blank: Some([7, 8, 9]) });
    }
}
