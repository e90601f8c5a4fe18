//! Decodes all frames of animated GIF, WebP and PNG files, each composited on the canvas.
//!
//! The decoder of each format lists its frames ([`Frames`]) without decoding them. This module draws them one after
//! another on one canvas, so that memory does not grow with the number of frames.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::decode::Input;
use crate::raster::{Flattening, Keys, Pixels};
use crate::{Alpha, Format, ImageError, ReadOptions, RgbImage};
use crate::{gif, png, webp};

/// Maximum number of frames of a file.
pub(crate) const MAX_FRAMES: usize = 1 << 20;

/// Maximum total number of pixels of all decoded frames, as a multiple of the maximum for one picture.
pub(crate) const MAX_PICTURES: u64 = 64;

/// An animated GIF, WebP or PNG file, of which no pixel has been decoded.
///
/// ```
/// use idefics_image::{Alpha, Animation, ReadOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Two frames of 1x1 pixels: black for 0.2 seconds, then white for 0.3 seconds.
/// let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\
///     !\xf9\x04\0\x14\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0\
///     !\xf9\x04\0\x1e\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0;";
/// let read = ReadOptions::default();
/// let animation = Animation::open(gif, "clip.gif", &read, Alpha::White)?.expect("GIF files can be animated");
/// assert_eq!((animation.len(), animation.duration().as_millis()), (2, 500));
/// let mut frames = Vec::new();
/// animation.decode(&[0, 1], |frame| frames.push(frame.into_data()))?;
/// assert_eq!(frames, [[0; 3], [255; 3]]);
/// # Ok(())
/// # }
/// ```
pub struct Animation<'a> {
    name: &'a str,
    format: Format,
    read: &'a ReadOptions,
    alpha: Alpha,
    frames: Frames<'a>,
}

/// The frames of a file, still compressed.
pub(crate) struct Frames<'a> {
    /// Width and height of the canvas, in pixels.
    pub(crate) canvas: (u32, u32),
    /// RGBA colour that fills the canvas before the first frame.
    pub(crate) backdrop: [u8; 4],
    pub(crate) infos: Vec<FrameInfo>,
    /// Decodes the RGBA pixels of a frame, `[height, width, 4]`.
    pub(crate) pixels: Decode<'a>,
}

/// A function that decodes the frame with the given index to RGBA, `[height, width, 4]`.
pub(crate) type Decode<'a> = Box<dyn Fn(usize, &Input<'_>) -> Result<Vec<u8>, ImageError> + Send + Sync + 'a>;

/// Where and how a frame is drawn. Lengths are in pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameInfo {
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) duration: Duration,
    pub(crate) dispose: Dispose,
    pub(crate) blend: Blend,
}

/// What happens to the area of a frame before the next frame is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dispose {
    /// The area stays unchanged.
    Keep,
    /// The area is filled with an RGBA colour.
    Fill([u8; 4]),
    /// The area gets back the pixels that it had before the frame was drawn.
    Previous,
}

/// How a frame is drawn on the canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blend {
    /// The frame's pixels replace the pixels of the canvas.
    Replace,
    /// The frame's pixels replace the pixels of the canvas, except where the frame is fully transparent.
    Mask,
    /// The frame is blended over the canvas as in libwebp, with the same rounding.
    WebP,
    /// The frame is blended over the canvas, with rounding to the nearest level.
    Over,
}

impl<'a> Animation<'a> {
    /// Lists the frames of a file. Returns `None` if the file is neither a GIF nor an animated WebP or PNG file. Error
    /// messages begin with `name`.
    ///
    /// `alpha` selects how transparent areas are handled. In a GIF they are always white.
    ///
    /// # Errors
    /// The errors that [`decode`](crate::decode()) returns before it decodes pixels, and [`ImageError::TooManyFrames`].
    pub fn open(
        bytes: &'a [u8],
        name: &'a str,
        read: &'a ReadOptions,
        alpha: Alpha,
    ) -> Result<Option<Self>, ImageError> {
        if bytes.len() as u64 > read.limits.max_bytes {
            return Err(ImageError::TooManyBytes { image: name.to_owned(), limit: read.limits.max_bytes });
        }
        let Ok(format) = Format::sniff(bytes) else { return Ok(None) };
        let input = Input::new(name, format, &read.limits);
        let frames = match format {
            Format::Gif => Some(gif::animation(bytes, &input, MAX_FRAMES)?),
            Format::WebP => webp::animation(bytes, &input, MAX_FRAMES)?,
            Format::Png => png::animation(bytes, &input, MAX_FRAMES)?,
            _ => None,
        };
        let Some(frames) = frames else { return Ok(None) };
        let alpha = if format == Format::Gif { Alpha::White } else { alpha };
        // Bytes per pixel: 4 for the canvas, 4 for a frame, 4 for the saved area under the frame, 3 for the RGB
        // picture.
        input.check_memory(15 * u64::from(frames.canvas.0) * u64::from(frames.canvas.1))?;
        Ok(Some(Self { name, format, read, alpha, frames }))
    }

    /// Returns the number of frames, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.frames.infos.len()
    }

    /// Returns the total time for which the frames are shown.
    pub fn duration(&self) -> Duration {
        self.frames.infos.iter().map(|info| info.duration).sum()
    }

    /// Returns the time for which each frame is shown.
    pub fn durations(&self) -> impl ExactSizeIterator<Item = Duration> {
        self.frames.infos.iter().map(|info| info.duration)
    }

    /// Decodes the frames at `indices`, which must be in ascending order, and calls `take` with each frame. Only one
    /// frame is held in memory at a time. Indices beyond the last frame are ignored.
    ///
    /// # Errors
    /// The errors of [`decode`](crate::decode()); [`ImageError::TooManyFramePixels`]; [`ImageError::Cancelled`] if the
    /// caller cancels.
    pub fn decode(&self, indices: &[usize], mut take: impl FnMut(RgbImage)) -> Result<(), ImageError> {
        let shown = self.frames.infos.iter().take(indices.last().map_or(0, |last| last.saturating_add(1)));
        let pixels = shown.map(|info| u64::from(info.width) * u64::from(info.height)).fold(0, u64::saturating_add);
        let limit = self.read.limits.max_pixels.saturating_mul(MAX_PICTURES);
        if pixels > limit {
            return Err(ImageError::TooManyFramePixels { image: self.name.to_owned(), pixels, limit });
        }
        // Unwind safety: after a panic, everything that the decoder wrote to is dropped.
        catch_unwind(AssertUnwindSafe(|| self.draw(indices, &mut take))).unwrap_or_else(|_| {
            Err(ImageError::DecoderPanic { image: self.name.to_owned(), format: self.format.name() })
        })
    }

    fn draw(&self, indices: &[usize], take: &mut dyn FnMut(RgbImage)) -> Result<(), ImageError> {
        let input = Input::new(self.name, self.format, &self.read.limits);
        let mut canvas = Canvas::new(&self.frames, &input)?;
        let mut wanted = indices.iter().peekable();
        for (index, info) in self.frames.infos.iter().enumerate() {
            if wanted.peek().is_none() {
                break;
            }
            if self.read.is_cancelled() {
                return Err(ImageError::Cancelled { image: self.name.to_owned() });
            }
            let pixels = (self.frames.pixels)(index, &input)?;
            if pixels.len() as u64 != 4 * u64::from(info.width) * u64::from(info.height) {
                return Err(input.damaged(format!("the size of frame {index} differs from its header")));
            }
            canvas.draw(info, &pixels);
            while wanted.next_if_eq(&&index).is_some() {
                take(canvas.to_rgb(self.alpha)?);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Animation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Animation").field("name", &self.name).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The picture composed so far, and the data that is needed to dispose of the last frame.
struct Canvas {
    width: usize,
    height: usize,
    /// RGBA pixels, `[height, width, 4]`.
    rgba: Pixels,
    /// The frame that was drawn last.
    last: Option<FrameInfo>,
    /// The pixels that were under the last frame, row by row, if they must be restored after this frame.
    covered: Vec<u8>,
}

impl Canvas {
    fn new(frames: &Frames<'_>, input: &Input<'_>) -> Result<Self, ImageError> {
        let (width, height) = (frames.canvas.0 as usize, frames.canvas.1 as usize);
        let mut rgba = input.zeroed(4 * width * height)?;
        rgba.as_chunks_mut().0.fill(frames.backdrop);
        Ok(Self { width, height, rgba: Pixels::Rgba(rgba), last: None, covered: Vec::new() })
    }

    /// Returns the part of each canvas row that a frame covers, `[width, 4]`. The frame is clipped to the canvas.
    fn rows(&mut self, info: &FrameInfo) -> impl Iterator<Item = &mut [u8]> {
        let clip = |start: u32, length: u32, side: usize| {
            let start = (start as usize).min(side);
            start..(start + length as usize).min(side)
        };
        let (columns, rows) = (clip(info.left, info.width, self.width), clip(info.top, info.height, self.height));
        let Pixels::Rgba(rgba) = &mut self.rgba else { unreachable!("the canvas is RGBA") };
        let rows = rgba.chunks_exact_mut(4 * self.width).take(rows.end).skip(rows.start);
        rows.map(move |row| &mut row[4 * columns.start..4 * columns.end])
    }

    fn draw(&mut self, info: &FrameInfo, pixels: &[u8]) {
        match self.last.replace(*info) {
            Some(last @ FrameInfo { dispose: Dispose::Fill(color), .. }) => {
                self.rows(&last).for_each(|row| row.as_chunks_mut().0.fill(color));
            }
            Some(last @ FrameInfo { dispose: Dispose::Previous, .. }) => {
                let covered = std::mem::take(&mut self.covered);
                let mut covered = covered.as_slice();
                for row in self.rows(&last) {
                    let (before, rest) = covered.split_at(row.len());
                    row.copy_from_slice(before);
                    covered = rest;
                }
            }
            _ => {}
        }
        if info.dispose == Dispose::Previous {
            let mut covered = Vec::new();
            self.rows(info).for_each(|row| covered.extend_from_slice(row));
            self.covered = covered;
        }
        if info.width == 0 || info.height == 0 {
            return;
        }
        let blend: fn([u8; 4], [u8; 4]) -> [u8; 4] = match info.blend {
            Blend::Replace => |source, _| source,
            Blend::Mask => |source, below| if source[3] == 0 { below } else { source },
            Blend::WebP => blend_webp,
            Blend::Over => blend_over,
        };
        for (row, source) in self.rows(info).zip(pixels.chunks_exact(4 * info.width as usize)) {
            for (below, &source) in row.as_chunks_mut().0.iter_mut().zip(source.as_chunks().0) {
                *below = blend(source, *below);
            }
        }
    }

    fn to_rgb(&self, alpha: Alpha) -> Result<RgbImage, ImageError> {
        let rgb = self.rgba.to_rgb(0..self.rgba.len(), Flattening::new(alpha, Keys::default()));
        RgbImage::new(self.width as u32, self.height as u32, rgb.into_owned())
    }
}

/// Blends one RGBA pixel over another like `BlendPixelNonPremult` of libwebp.
fn blend_webp(source: [u8; 4], below: [u8; 4]) -> [u8; 4] {
    let alpha = u32::from(source[3]);
    if alpha == 0 {
        return below;
    }
    if alpha == 255 {
        return source;
    }
    let rest = (u32::from(below[3]) * (256 - alpha)) >> 8;
    let sum = alpha + rest;
    let scale = (1 << 24) / sum;
    let channel = |at: usize| {
        let weighted = u32::from(source[at]) * alpha + u32::from(below[at]) * rest;
        ((u64::from(weighted) * u64::from(scale)) >> 24) as u8
    };
    [channel(0), channel(1), channel(2), sum as u8]
}

/// Blends one RGBA pixel over another with the operation "over" of the PNG specification, section 13.16.
fn blend_over(source: [u8; 4], below: [u8; 4]) -> [u8; 4] {
    let (alpha, under) = (u32::from(source[3]), u32::from(below[3]));
    if alpha == 0 {
        return below;
    }
    if alpha == 255 || under == 0 {
        return source;
    }
    // Both weights are scaled by 255, so that they stay integers.
    let (over, rest) = (255 * alpha, under * (255 - alpha));
    let sum = over + rest;
    let channel = |at: usize| ((u32::from(source[at]) * over + u32::from(below[at]) * rest + sum / 2) / sum) as u8;
    [channel(0), channel(1), channel(2), ((sum + 127) / 255) as u8]
}

/// Converts pixels to RGBA. If the pixels have no alpha, pixels of the colour `key` become transparent.
pub(crate) fn to_rgba(pixels: &Pixels, key: Option<[u8; 3]>) -> Vec<u8> {
    let with_key = |color: [u8; 3]| [color[0], color[1], color[2], if key == Some(color) { 0 } else { 255 }];
    match pixels {
        Pixels::Grey(data) => data.iter().flat_map(|&value| with_key([value; 3])).collect(),
        Pixels::GreyAlpha(data) => {
            data.as_chunks().0.iter().flat_map(|&[value, alpha]| [value, value, value, alpha]).collect()
        }
        Pixels::Rgb(data) => data.as_chunks().0.iter().flat_map(|&color| with_key(color)).collect(),
        Pixels::Rgba(data) => data.clone(),
        Pixels::Indexed(data, palette) => data.iter().flat_map(|&index| palette.0[usize::from(index)]).collect(),
        other => {
            let opaque = Flattening::new(Alpha::Drop, Keys::default());
            let rgb = other.to_rgb(0..other.len(), opaque);
            rgb.as_chunks().0.iter().flat_map(|&color| with_key(color)).collect()
        }
    }
}
