//! WebP decoder with the same output as Pillow with libwebp's `WebPAnimDecoder`. It decodes a still image, the first
//! frame of an animation, or all frames of an animation.
//!
//! This module parses the container itself. Each frame is decoded as a still image, so that it is not blended with the
//! background, and then placed on a transparent canvas.

use std::io::Cursor;
use std::time::Duration;

use image_webp::{DecodingError, WebPDecoder};

use crate::ImageError;
use crate::animation::{Blend, Dispose, FrameInfo, Frames};
use crate::decode::Input;
use crate::orientation::orientation;
use crate::raster::{Pixels, Raster};

// Flags of the `VP8X` header.
const ANIMATION: u8 = 0x02;
const XMP: u8 = 0x04;
const EXIF: u8 = 0x08;
const ALPHA: u8 = 0x10;

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let file = File::read(bytes, input)?;
    let still = file.frame.to_still(input)?;
    let mut decoder = WebPDecoder::new(Cursor::new(still)).map_err(|error| input.webp_error(error))?;
    let (width, height) = decoder.dimensions();
    let canvas = file.canvas.unwrap_or((width, height));
    input.check_size(canvas.0, canvas.1)?;
    input.check_memory(4 * (u64::from(width) * u64::from(height) + u64::from(canvas.0) * u64::from(canvas.1)))?;
    decoder.set_memory_limit(input.max_decoded_bytes());

    let (left, top) = file.frame.place;
    if u64::from(left) + u64::from(width) > canvas.0.into() || u64::from(top) + u64::from(height) > canvas.1.into() {
        return Err(input.damaged("a frame reaches outside the canvas"));
    }
    let size = decoder.output_buffer_size().ok_or_else(|| input.memory_error(u64::MAX))?;
    let mut data = vec![0; size];
    decoder.read_image(&mut data).map_err(|error| input.webp_error(error))?;

    let has_alpha = file.has_alpha.unwrap_or(decoder.has_alpha());
    let pixels = match (decoder.has_alpha(), has_alpha, (width, height) == canvas) {
        (false, _, true) => Pixels::Rgb(data),
        (true, true, true) => Pixels::Rgba(data),
        (is_rgba, true, _) => Pixels::Rgba(on_canvas::<4>(&data, is_rgba, width, file.frame.place, canvas)),
        (is_rgba, false, _) => Pixels::Rgb(on_canvas::<3>(&data, is_rgba, width, file.frame.place, canvas)),
    };
    Ok(Raster { orientation: orientation(file.exif, file.xmp), ..Raster::new(canvas.0, canvas.1, pixels) })
}

/// Lists the frames of an animation. Returns `None` for a still image.
///
/// Source: `anim_decode.c` of libwebp. It ignores the background colour of the file, so that cleared areas are
/// transparent.
pub(crate) fn animation<'a>(
    bytes: &'a [u8],
    input: &Input<'_>,
    max_frames: usize,
) -> Result<Option<Frames<'a>>, ImageError> {
    const NO_BLEND: u8 = 0x02;
    const CLEAR: u8 = 0x01;
    let early = || input.damaged("the file ends early");
    let file = File::read(bytes, input)?;
    let (Some(canvas), Some(_)) = (file.canvas, file.has_alpha) else { return Ok(None) };
    let mut frames: Vec<Frame<'a>> = Vec::new();
    let mut infos: Vec<FrameInfo> = Vec::new();
    for chunk in chunks(body(bytes).ok_or_else(early)?) {
        let (kind, data) = chunk.ok_or_else(early)?;
        if &kind != b"ANMF" {
            continue;
        }
        if frames.len() == max_frames {
            return Err(input.too_many_frames(max_frames));
        }
        let (frame, head) = Frame::read(data).ok_or_else(early)?;
        let (width, height) = (1 + u24(&head[6..]), 1 + u24(&head[9..]));
        let (left, top) = frame.place;
        let fits = |start: u32, length: u32, whole: u32| u64::from(start) + u64::from(length) <= whole.into();
        if !fits(left, width, canvas.0) || !fits(top, height, canvas.1) {
            return Err(input.damaged("a frame reaches outside the canvas"));
        }
        let flags = head[15];
        infos.push(FrameInfo {
            left,
            top,
            width,
            height,
            duration: Duration::from_millis(u24(&head[12..]).into()),
            dispose: if flags & CLEAR != 0 { Dispose::Fill([0; 4]) } else { Dispose::Keep },
            blend: if flags & NO_BLEND != 0 { Blend::Replace } else { Blend::WebP },
        });
        frames.push(frame);
    }
    if frames.is_empty() {
        return Err(input.damaged("the animation has no frames"));
    }
    copy_key_frames(&mut infos, canvas);
    let pixels = move |index: usize, input: &Input<'_>| {
        let frame: &Frame<'a> = &frames[index];
        frame.rgba(input)
    };
    Ok(Some(Frames { canvas, backdrop: [0; 4], infos, pixels: Box::new(pixels) }))
}

/// Turns off blending for key frames, which are frames over an empty canvas and frames that replace the whole canvas.
/// Blending such a frame with transparent pixels could change it by one level.
///
/// Source: `IsKeyFrame` of libwebp, without its rule for frames without alpha, which makes no difference here.
fn copy_key_frames(infos: &mut [FrameInfo], canvas: (u32, u32)) {
    let is_full = |info: &FrameInfo| (info.width, info.height) == canvas;
    let mut was_key = false;
    for index in 0..infos.len() {
        let cleared = index.checked_sub(1).is_some_and(|before| {
            matches!(infos[before].dispose, Dispose::Fill(_)) && (is_full(&infos[before]) || was_key)
        });
        let is_key = index == 0 || (infos[index].blend == Blend::Replace && is_full(&infos[index])) || cleared;
        if is_key {
            infos[index].blend = Blend::Replace;
        }
        was_key = is_key;
    }
}

/// Returns the bytes of all chunks of the file.
fn body(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.get(4..8).and_then(u32_le)?;
    bytes.get(12..(8 + length as usize))
}

/// The parsed container.
struct File<'a> {
    /// Canvas width and height of an extended file (`VP8X`), in pixels.
    canvas: Option<(u32, u32)>,
    /// Whether the image has alpha, from the flags in the header of an animation. `None` for a still picture, whose
    /// frame declares whether it has alpha.
    has_alpha: Option<bool>,
    frame: Frame<'a>,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
}

/// The chunks of one frame, and the position of its left and top edges on the canvas, in pixels.
#[derive(Default)]
struct Frame<'a> {
    place: (u32, u32),
    lossy: Option<&'a [u8]>,
    lossless: Option<&'a [u8]>,
    alpha: Option<&'a [u8]>,
}

impl<'a> File<'a> {
    fn read(bytes: &'a [u8], input: &Input<'_>) -> Result<Self, ImageError> {
        let early = || input.damaged("the file ends early");
        let body = body(bytes).ok_or_else(early)?;
        let mut file = Self { canvas: None, has_alpha: None, frame: Frame::default(), exif: None, xmp: None };
        let mut flags = 0;
        for chunk in chunks(body) {
            let (kind, data) = chunk.ok_or_else(early)?;
            match &kind {
                b"VP8X" => {
                    let header: &[u8; 10] = data.first_chunk().ok_or_else(early)?;
                    flags = header[0];
                    let canvas = (1 + u24(&header[4..]), 1 + u24(&header[7..]));
                    input.check_size(canvas.0, canvas.1)?;
                    file.canvas = Some(canvas);
                }
                b"ANMF" if flags & ANIMATION != 0 && !file.frame.has_pixels() => {
                    (file.frame, _) = Frame::read(data).ok_or_else(early)?;
                }
                b"EXIF" if flags & EXIF != 0 => file.exif = file.exif.or(Some(data)),
                b"XMP " if flags & XMP != 0 => file.xmp = file.xmp.or(Some(data)),
                _ if flags & ANIMATION == 0 => file.frame.take(kind, data),
                _ => {}
            }
        }
        if flags & ANIMATION != 0 {
            file.has_alpha = Some(flags & ALPHA != 0);
        }
        Ok(file)
    }
}

impl<'a> Frame<'a> {
    /// Reads the data of an `ANMF` chunk. Returns the frame and the header: position, size, duration and flags.
    fn read(data: &'a [u8]) -> Option<(Self, &'a [u8; 16])> {
        let (head, rest) = data.split_first_chunk::<16>()?;
        let mut frame = Self { place: (2 * u24(head), 2 * u24(&head[3..])), ..Self::default() };
        for chunk in chunks(rest) {
            let (kind, data) = chunk?;
            frame.take(kind, data);
        }
        Some((frame, head))
    }

    /// Decodes the pixels, `[height, width, 4]`.
    fn rgba(&self, input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
        let still = self.to_still(input)?;
        let mut decoder = WebPDecoder::new(Cursor::new(still)).map_err(|error| input.webp_error(error))?;
        decoder.set_memory_limit(input.max_decoded_bytes());
        let size = decoder.output_buffer_size().ok_or_else(|| input.memory_error(u64::MAX))?;
        input.check_memory(size as u64)?;
        let mut data = vec![0; size];
        decoder.read_image(&mut data).map_err(|error| input.webp_error(error))?;
        Ok(match decoder.has_alpha() {
            true => data,
            false => data.as_chunks::<3>().0.iter().flat_map(|&[red, green, blue]| [red, green, blue, 255]).collect(),
        })
    }

    fn take(&mut self, kind: [u8; 4], data: &'a [u8]) {
        let slot = match &kind {
            b"VP8 " => &mut self.lossy,
            b"VP8L" => &mut self.lossless,
            b"ALPH" => &mut self.alpha,
            _ => return,
        };
        slot.get_or_insert(data);
    }

    fn has_pixels(&self) -> bool {
        self.lossy.is_some() || self.lossless.is_some()
    }

    /// Writes the frame as a still WebP file.
    fn to_still(&self, input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
        let mut body = b"WEBP".to_vec();
        match (self.lossy, self.lossless, self.alpha) {
            (Some(lossy), None, None) => push_chunk(&mut body, b"VP8 ", lossy),
            (None, Some(lossless), _) => push_chunk(&mut body, b"VP8L", lossless),
            (Some(lossy), None, Some(alpha)) => {
                let &[w0, w1, h0, h1] = lossy
                    .get(6..10)
                    .and_then(|size| size.first_chunk())
                    .ok_or_else(|| input.damaged("the file ends early"))?;
                let side =
                    |low, high| (u32::from(u16::from_le_bytes([low, high])) & 0x3fff).wrapping_sub(1).to_le_bytes();
                let (width, height) = (side(w0, w1), side(h0, h1));
                let header = [ALPHA, 0, 0, 0, width[0], width[1], width[2], height[0], height[1], height[2]];
                push_chunk(&mut body, b"VP8X", &header);
                push_chunk(&mut body, b"ALPH", alpha);
                push_chunk(&mut body, b"VP8 ", lossy);
            }
            _ => return Err(input.damaged("there is no image, or a frame has several images")),
        }
        let mut still = Vec::with_capacity(body.len() + 8);
        push_chunk(&mut still, b"RIFF", &body);
        Ok(still)
    }
}

fn push_chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend_from_slice(kind);
    file.extend((data.len() as u32).to_le_bytes());
    file.extend_from_slice(data);
    if data.len() % 2 == 1 {
        file.push(0);
    }
}

/// Iterates over the chunks of a RIFF list. If a chunk is cut off, the iterator yields `None` and ends.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = Option<([u8; 4], &[u8])>> {
    std::iter::from_fn(move || {
        if rest.len() < 8 {
            return None;
        }
        let read = || {
            let (kind, tail) = rest.split_first_chunk::<4>()?;
            let length = u32_le(tail)? as usize;
            let data = tail.get(4..4 + length)?;
            Some((*kind, data, tail.get(4 + length + length % 2..).unwrap_or_default()))
        };
        let chunk = read();
        rest = chunk.map(|(_, _, tail)| tail).unwrap_or_default();
        Some(chunk.map(|(kind, data, _)| (kind, data)))
    })
}

fn u32_le(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u24(bytes: &[u8]) -> u32 {
    u32::from(bytes[0]) | u32::from(bytes[1]) << 8 | u32::from(bytes[2]) << 16
}

/// Places a frame on a canvas of `N` channels. The area around the frame is transparent (4 channels) or black (3
/// channels).
fn on_canvas<const N: usize>(
    data: &[u8],
    is_rgba: bool,
    width: u32,
    (left, top): (u32, u32),
    canvas: (u32, u32),
) -> Vec<u8> {
    let channels = if is_rgba { 4 } else { 3 };
    let mut out = vec![0; N * canvas.0 as usize * canvas.1 as usize];
    for (y, row) in data.chunks_exact(channels * width as usize).enumerate() {
        let start = N * ((top as usize + y) * canvas.0 as usize + left as usize);
        for (target, source) in out[start..].chunks_exact_mut(N).zip(row.chunks_exact(channels)) {
            let color = [source[0], source[1], source[2], source.get(3).copied().unwrap_or(255)];
            target.copy_from_slice(&color[..N]);
        }
    }
    out
}

impl Input<'_> {
    fn webp_error(&self, error: DecodingError) -> ImageError {
        match error {
            DecodingError::UnsupportedFeature(reason) => self.coding(reason),
            DecodingError::MemoryLimitExceeded => self.memory_error(self.max_decoded_bytes() as u64 + 1),
            error => self.damaged(error.to_string()),
        }
    }
}
