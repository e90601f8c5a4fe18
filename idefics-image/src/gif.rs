//! GIF decoder, equal to Pillow. It decodes the first frame and places it on the canvas.
//!
//! Source: `GifImagePlugin.py` of Pillow. The crate `weezl` decompresses the indices.

use weezl::decode::Decoder;
use weezl::{BitOrder, LzwStatus};

use crate::ImageError;
use crate::decode::Input;
use crate::raster::{Keys, Palette, Pixels, Raster};

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let early = || input.damaged("the file ends early");
    let screen = bytes.get(6..10).and_then(read_size).ok_or_else(early)?;
    input.check_size(u32::from(screen.0), u32::from(screen.1))?;
    let image = FirstFrame::read(bytes).ok_or_else(early)?;

    // If the frame reaches beyond the screen, the canvas is enlarged.
    let width = (u32::from(image.left) + u32::from(image.width)).max(screen.0.into());
    let height = (u32::from(image.top) + u32::from(image.height)).max(screen.1.into());
    input.check_size(width, height)?;
    if image.width == 0 || image.height == 0 {
        return Err(input.damaged("its first frame is empty"));
    }
    input.check_memory(2 * u64::from(width) * u64::from(height))?;

    let frame = image.decompress(input)?;
    let indices = if (width, height) == (image.width.into(), image.height.into()) {
        frame
    } else {
        let mut canvas = vec![image.transparent.unwrap_or(0); width as usize * height as usize];
        for (y, row) in frame.chunks_exact(image.width.into()).enumerate() {
            let start = (usize::from(image.top) + y) * width as usize + usize::from(image.left);
            canvas[start..start + row.len()].copy_from_slice(row);
        }
        canvas
    };
    let (palette, keys) = image.palette();
    Ok(Raster { keys, ..Raster::new(width, height, Pixels::Indexed(indices, palette)) })
}

fn read_size(bytes: &[u8]) -> Option<(u16, u16)> {
    let &[w0, w1, h0, h1] = bytes.first_chunk()?;
    Some((u16::from_le_bytes([w0, w1]), u16::from_le_bytes([h0, h1])))
}

/// The first frame, still compressed.
struct FirstFrame<'a> {
    left: u16,
    top: u16,
    width: u16,
    height: u16,
    is_interlaced: bool,
    /// Packed RGB of the local or global palette, if there is one.
    palette: Option<&'a [u8]>,
    transparent: Option<u8>,
    /// The LZW code size, followed by the blocks of compressed indices.
    data: &'a [u8],
}

impl<'a> FirstFrame<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        const EXTENSION: u8 = 0x21;
        const GRAPHIC_CONTROL: u8 = 0xf9;
        const IMAGE: u8 = 0x2c;
        const TRAILER: u8 = 0x3b;
        let table = |flags: u8| if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 };

        let length = table(*bytes.get(10)?);
        let mut palette = (length > 0).then_some(bytes.get(13..13 + length)?);
        let mut transparent = None;
        let mut rest = bytes.get(13 + length..)?;
        loop {
            match rest {
                [EXTENSION, label, blocks @ ..] => {
                    if let (&GRAPHIC_CONTROL, [_, flags, _, _, index, ..]) = (label, blocks) {
                        // A transparent index stays in effect until another block sets one.
                        transparent = (flags & 1 == 1).then_some(*index).or(transparent);
                    }
                    rest = blocks;
                    while let (&length @ 1.., tail) = rest.split_first()? {
                        rest = tail.get(usize::from(length)..)?;
                    }
                    rest = &rest[1..];
                }
                [IMAGE, descriptor @ ..] => {
                    let (&[l0, l1, t0, t1, w0, w1, h0, h1, flags], mut data) = descriptor.split_first_chunk()?;
                    let length = table(flags);
                    if length > 0 {
                        palette = Some(data.get(..length)?);
                        data = &data[length..];
                    }
                    return Some(Self {
                        left: u16::from_le_bytes([l0, l1]),
                        top: u16::from_le_bytes([t0, t1]),
                        width: u16::from_le_bytes([w0, w1]),
                        height: u16::from_le_bytes([h0, h1]),
                        is_interlaced: flags & 0x40 != 0,
                        palette,
                        transparent,
                        data,
                    });
                }
                [TRAILER, ..] | [] => return None,
                [_, tail @ ..] => rest = tail,
            }
        }
    }

    /// Decompresses the palette indices of the frame, `[height, width]`.
    fn decompress(&self, input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
        let (&code_size, mut rest) = self.data.split_first().ok_or_else(|| input.damaged("the file ends early"))?;
        if !(1..=11).contains(&code_size) {
            return Err(input.damaged(format!("its LZW code size is {code_size} bits; expected 1 to 11")));
        }
        let mut packed = Vec::new();
        // A block that is cut off by the end of the file is dropped.
        while let Some((&length @ 1.., tail)) = rest.split_first() {
            let Some((block, tail)) = tail.split_at_checked(length.into()) else { break };
            packed.extend_from_slice(block);
            rest = tail;
        }
        let (width, height) = (usize::from(self.width), usize::from(self.height));
        let mut indices = vec![0; width * height];
        let mut decoder = Decoder::new(BitOrder::Lsb, code_size);
        let (mut read, mut written) = (0, 0);
        while written < indices.len() {
            let decoded = decoder.decode_bytes(&packed[read..], &mut indices[written..]);
            read += decoded.consumed_in;
            written += decoded.consumed_out;
            // The data may contain an end code before the last pixel.
            let goes_on = matches!(decoded.status, Ok(LzwStatus::Ok)) && decoded.consumed_in + decoded.consumed_out > 0;
            if written < indices.len() && !goes_on {
                return Err(input.damaged("the pixel data ends early"));
            }
        }
        Ok(if self.is_interlaced { deinterlaced(&indices, width, height) } else { indices })
    }

    /// The palette and the colour keys. Without a palette, or if every palette entry is the grey level of its index,
    /// Pillow treats the image as grey.
    fn palette(&self) -> (Palette, Keys) {
        let is_needed = |palette: &&[u8]| {
            let mut entries = palette.chunks_exact(3).enumerate();
            entries.any(|(at, color)| color.iter().any(|&value| at != usize::from(value)))
        };
        match self.palette.filter(is_needed) {
            Some(palette) => {
                let mut palette = Palette::from_rgb(palette);
                let dropped = self.transparent.map(|index| palette.color(index));
                if let Some(index) = self.transparent {
                    palette.0[usize::from(index)][3] = 0;
                }
                (palette, Keys { over_white: None, dropped })
            }
            None => {
                let keys = self.transparent.map(|index| Keys::both([index; 3])).unwrap_or_default();
                (Palette::new((0..=255).map(|value| [value; 3])), keys)
            }
        }
    }
}

/// Sorts interlaced rows. They are stored in four passes: first every eighth row, then those in between.
fn deinterlaced(indices: &[u8], width: usize, height: usize) -> Vec<u8> {
    let passes = [(0, 8), (4, 8), (2, 4), (1, 2)];
    let order = passes.into_iter().flat_map(|(first, step)| (first..height).step_by(step));
    let mut out = vec![0; indices.len()];
    if width > 0 {
        for (row, y) in indices.chunks_exact(width).zip(order) {
            out[y * width..][..width].copy_from_slice(row);
        }
    }
    out
}
