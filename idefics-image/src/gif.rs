//! GIF decoder with the same output as Pillow. It decodes the first frame, placed on the canvas, or all frames of an
//! animation.
//!
//! Source: `GifImagePlugin.py` of Pillow. The crate `weezl` decompresses the indices.

use std::time::Duration;

use weezl::decode::Decoder;
use weezl::{BitOrder, LzwStatus};

use crate::ImageError;
use crate::animation::{Blend, Dispose, FrameInfo, Frames};
use crate::decode::Input;
use crate::raster::{Keys, Palette, Pixels, Raster};

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let image = Reader::new(bytes).and_then(|mut reader| reader.next_frame());
    let image = image.ok_or_else(|| input.damaged("the file ends early"))?;
    let (width, height) = image.canvas(bytes, input)?;
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

/// Lists the frames of an animation. The canvas covers the first frame. Later frames are clipped to the canvas.
pub(crate) fn animation<'a>(bytes: &'a [u8], input: &Input<'_>, max_frames: usize) -> Result<Frames<'a>, ImageError> {
    let early = || input.damaged("the file ends early");
    let mut reader = Reader::new(bytes).ok_or_else(early)?;
    // The background index in the header is valid only if there is a global palette.
    let background = reader.palette.and_then(|_| bytes.get(11).copied()).unwrap_or(0);
    let mut images: Vec<Frame<'a>> = Vec::new();
    while let Some(frame) = reader.next_frame() {
        if images.len() == max_frames {
            return Err(input.too_many_frames(max_frames));
        }
        images.push(frame);
    }
    let first = images.first().ok_or_else(early)?;
    let canvas = first.canvas(bytes, input)?;
    let palette = first.rgba_palette();
    let backdrop = match first.transparent {
        Some(index) => palette.0[usize::from(index)],
        None => palette.0[0],
    };
    let mut infos: Vec<FrameInfo> = images.iter().map(|frame| frame.info(background)).collect();
    if first.transparent.is_none() && infos[0].dispose == Dispose::Previous {
        infos[0].dispose = Dispose::Keep; // there are no earlier pixels to restore
    }
    let pixels = move |index: usize, input: &Input<'_>| -> Result<Vec<u8>, ImageError> {
        let frame: &Frame<'a> = &images[index];
        let palette = frame.rgba_palette();
        let indices = frame.decompress(input)?;
        Ok(indices.iter().flat_map(|&index| palette.0[usize::from(index)]).collect())
    };
    Ok(Frames { canvas, backdrop, infos, pixels: Box::new(pixels) })
}

fn read_size(bytes: &[u8]) -> Option<(u16, u16)> {
    let &[w0, w1, h0, h1] = bytes.first_chunk()?;
    Some((u16::from_le_bytes([w0, w1]), u16::from_le_bytes([h0, h1])))
}

/// A frame, still compressed.
struct Frame<'a> {
    left: u16,
    top: u16,
    width: u16,
    height: u16,
    is_interlaced: bool,
    /// Entries of the local palette or, if there is none, of the global palette, as packed RGB.
    palette: Option<&'a [u8]>,
    transparent: Option<u8>,
    /// What happens to the frame's area before the next frame is drawn: 2 clears it, 3 restores its earlier pixels, and
    /// other values keep it.
    disposal: u8,
    /// Time for which the frame is shown, in hundredths of a second.
    delay: u16,
    /// The LZW code size, followed by the blocks of compressed indices.
    data: &'a [u8],
}

/// A reader that returns one frame after another.
struct Reader<'a> {
    rest: &'a [u8],
    /// Entries of the global palette as packed RGB, if there is one.
    palette: Option<&'a [u8]>,
    /// The last disposal other than 0 that was read; 0 at first.
    disposal: u8,
}

/// Returns the length in bytes of the palette that a flag byte announces; 0 if there is no palette.
fn palette_length(flags: u8) -> usize {
    if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 }
}

/// Returns the bytes after a list of blocks, or `None` if the file ends within the list.
fn after_blocks(mut blocks: &[u8]) -> Option<&[u8]> {
    while let (&length @ 1.., tail) = blocks.split_first()? {
        blocks = tail.get(usize::from(length)..)?;
    }
    Some(&blocks[1..])
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let length = palette_length(*bytes.get(10)?);
        let palette = (length > 0).then_some(bytes.get(13..13 + length)?);
        Some(Self { rest: bytes.get(13 + length..)?, palette, disposal: 0 })
    }

    /// Returns the next frame, or `None` at the end of the file. A frame that is cut off before its pixels counts as
    /// the end.
    fn next_frame(&mut self) -> Option<Frame<'a>> {
        const EXTENSION: u8 = 0x21;
        const GRAPHIC_CONTROL: u8 = 0xf9;
        const IMAGE: u8 = 0x2c;
        const TRAILER: u8 = 0x3b;

        let mut transparent = None;
        let mut delay = 0;
        loop {
            match self.rest {
                [EXTENSION, label, blocks @ ..] => {
                    if let (&GRAPHIC_CONTROL, [_, flags, d0, d1, index, ..]) = (label, blocks) {
                        // A transparent index stays in effect until another block sets one.
                        transparent = (flags & 1 == 1).then_some(*index).or(transparent);
                        delay = u16::from_le_bytes([*d0, *d1]);
                        // A disposal of 0 leaves the previous one in effect.
                        self.disposal = Some(flags >> 2 & 7).filter(|&disposal| disposal > 0).unwrap_or(self.disposal);
                    }
                    self.rest = after_blocks(blocks)?;
                }
                [IMAGE, descriptor @ ..] => {
                    let (&[l0, l1, t0, t1, w0, w1, h0, h1, flags], mut data) = descriptor.split_first_chunk()?;
                    let length = palette_length(flags);
                    let mut palette = self.palette;
                    if length > 0 {
                        palette = Some(data.get(..length)?);
                        data = &data[length..];
                    }
                    self.rest = data.get(1..).and_then(after_blocks).unwrap_or_default();
                    return Some(Frame {
                        left: u16::from_le_bytes([l0, l1]),
                        top: u16::from_le_bytes([t0, t1]),
                        width: u16::from_le_bytes([w0, w1]),
                        height: u16::from_le_bytes([h0, h1]),
                        is_interlaced: flags & 0x40 != 0,
                        palette,
                        transparent,
                        disposal: self.disposal,
                        delay,
                        data,
                    });
                }
                [TRAILER, ..] | [] => return None,
                [_, tail @ ..] => self.rest = tail,
            }
        }
    }
}

impl Frame<'_> {
    /// Returns the width and height of the canvas of a file whose first frame is `self`. The canvas is the logical
    /// screen, enlarged if the frame reaches beyond it.
    fn canvas(&self, bytes: &[u8], input: &Input<'_>) -> Result<(u32, u32), ImageError> {
        let screen = bytes.get(6..10).and_then(read_size).ok_or_else(|| input.damaged("the file ends early"))?;
        input.check_size(u32::from(screen.0), u32::from(screen.1))?;
        let width = (u32::from(self.left) + u32::from(self.width)).max(screen.0.into());
        let height = (u32::from(self.top) + u32::from(self.height)).max(screen.1.into());
        input.check_size(width, height)?;
        if self.width == 0 || self.height == 0 {
            return Err(input.damaged("its first frame is empty"));
        }
        Ok((width, height))
    }

    /// Returns where and how the frame is drawn. `background` is the palette index of the background colour.
    fn info(&self, background: u8) -> FrameInfo {
        // Players show a frame with a delay of 0 or 1 hundredths of a second for a tenth of a second.
        let hundredths = if self.delay < 2 { 10 } else { self.delay };
        let dispose = match (self.disposal, self.transparent) {
            (2, Some(index)) => Dispose::Fill(self.rgba_palette().0[usize::from(index)]),
            (2, None) => Dispose::Fill(self.rgba_palette().0[usize::from(background)]),
            (3, _) => Dispose::Previous,
            _ => Dispose::Keep,
        };
        FrameInfo {
            left: self.left.into(),
            top: self.top.into(),
            width: self.width.into(),
            height: self.height.into(),
            duration: Duration::from_millis(10 * u64::from(hundredths)),
            dispose,
            blend: Blend::Mask,
        }
    }

    /// Returns the palette, in which the transparent index has alpha 0. Without a palette, each index is a grey level.
    fn rgba_palette(&self) -> Palette {
        let mut palette = match self.palette {
            Some(palette) => Palette::from_rgb(palette),
            None => Palette::new((0..=255).map(|value| [value; 3])),
        };
        if let Some(index) = self.transparent {
            palette.0[usize::from(index)][3] = 0;
        }
        palette
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
            // The data ends early if an end code comes before the last pixel, or if the decoder makes no progress.
            let goes_on = matches!(decoded.status, Ok(LzwStatus::Ok)) && decoded.consumed_in + decoded.consumed_out > 0;
            if written < indices.len() && !goes_on {
                return Err(input.damaged("the pixel data ends early"));
            }
        }
        Ok(if self.is_interlaced { deinterlaced(&indices, width, height) } else { indices })
    }

    /// Returns the palette and the colour keys. Without a palette, or if every palette entry is a grey whose level
    /// equals the index of the entry, Pillow treats the image as grey.
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

/// Puts interlaced rows in order. They are stored in four passes: first every eighth row, then the rows in between.
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
