//! Reads AVI files: lists the frames of the first video stream, and decodes them if every frame is a JPEG picture
//! (Motion JPEG).
//!
//! Source: Microsoft's AVI RIFF file reference, and the OpenDML 1.02 extensions for files with several RIFF lists.

use std::num::NonZeroU32;

use crate::animation::{MAX_FRAMES, MAX_PICTURES};
use crate::jpeg;
use crate::{Alpha, Format, ImageError, ReadOptions, RgbImage, decode};

/// Maximum nesting depth of lists. Usual files have at most three levels.
const MAX_DEPTH: usize = 8;

/// Length of the header of a chunk, in bytes.
const HEAD: usize = 8;

/// An AVI file, of which no pixel has been decoded.
pub struct Avi<'a> {
    bytes: &'a [u8],
    name: &'a str,
    read: &'a ReadOptions,
    header: Header,
    /// The frames of the stream, in order.
    frames: Vec<Chunk>,
}

/// The header fields that describe the first video stream.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    /// Duration of a frame in microseconds, from the header of the file; 0 if unknown.
    frame_time: u32,
    /// Number of stream lists that have been read completely.
    n_streams: usize,
    stream: Option<Stream>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    index: usize,
    /// Frames per second are `rate / scale`.
    rate: u32,
    scale: u32,
    /// Four-character code of the codec, such as `MJPG`.
    codec: [u8; 4],
    /// Whether the format of the stream has been read.
    is_complete: bool,
}

/// A chunk of a RIFF list.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    kind: [u8; 4],
    /// Offset of the data.
    start: usize,
    /// Length of the data, in bytes.
    len: usize,
}

impl Chunk {
    /// Returns the offset of the chunk's header.
    fn offset(&self) -> usize {
        self.start - HEAD
    }

    /// Returns the offset of the next chunk. Data of odd length is followed by one byte of padding.
    fn next(&self) -> usize {
        self.start + self.len + self.len % 2
    }
}

impl<'a> Avi<'a> {
    /// Returns whether `bytes` begin with the header of an AVI file.
    pub fn is_avi(bytes: &[u8]) -> bool {
        matches!(bytes, [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..])
    }

    /// Lists the frames of the first video stream. Error messages begin with `name`.
    ///
    /// # Errors
    /// [`ImageError::Avi`] if a chunk is damaged or cut off, or if there is no video; [`ImageError::TooManyFrames`];
    /// [`ImageError::TooManyBytes`].
    pub fn open(bytes: &'a [u8], name: &'a str, read: &'a ReadOptions) -> Result<Self, ImageError> {
        if bytes.len() as u64 > read.limits.max_bytes {
            return Err(ImageError::TooManyBytes { image: name.to_owned(), limit: read.limits.max_bytes });
        }
        let mut avi = Self { bytes, name, read, header: Header::default(), frames: Vec::new() };
        if !Self::is_avi(bytes) {
            return Err(avi.damaged(0, "expected `RIFF`, a length and `AVI `"));
        }
        avi.walk(0, bytes.len(), 0)?;
        match avi.header.stream {
            Some(Stream { is_complete: true, .. }) => {}
            _ => return Err(avi.damaged(bytes.len(), "the file has no video stream")),
        }
        if avi.frames.is_empty() {
            return Err(avi.damaged(bytes.len(), "the file has no frames"));
        }
        Ok(avi)
    }

    /// Returns the number of frames, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns the frames per second, or `None` if the headers do not give a rate.
    pub fn fps(&self) -> Option<f64> {
        let stream = self.header.stream?;
        let of_stream = NonZeroU32::new(stream.scale).filter(|_| stream.rate > 0);
        let of_stream = of_stream.map(|scale| f64::from(stream.rate) / f64::from(scale.get()));
        of_stream.or_else(|| NonZeroU32::new(self.header.frame_time).map(|time| 1e6 / f64::from(time.get())))
    }

    /// Returns the four-character code of the codec, such as `MJPG` or `H264`.
    pub fn codec(&self) -> String {
        let codec = self.header.stream.map_or([0; 4], |stream| stream.codec);
        String::from_utf8_lossy(&codec).trim_end_matches('\0').to_owned()
    }

    /// Returns whether every frame is a JPEG picture. [`Self::decode`] can decode only such files.
    pub fn is_motion_jpeg(&self) -> bool {
        matches!(self.codec().to_ascii_uppercase().as_str(), "MJPG" | "JPEG" | "AVRN" | "DMB1")
    }

    /// Decodes the frames at `indices`, which must be in ascending order, and calls `take` with each frame. An empty
    /// chunk repeats the frame before it. Indices beyond the last frame are ignored.
    ///
    /// # Errors
    /// [`ImageError::Coding`] if the codec is not Motion JPEG; [`ImageError::Avi`] if a frame is empty or not a JPEG
    /// picture; [`ImageError::TooManyFramePixels`]; the errors of [`decode`](crate::decode()) for a frame, with the
    /// frame's index and offset in the name; [`ImageError::Cancelled`] if the caller cancels.
    pub fn decode(&self, indices: &[usize], mut take: impl FnMut(RgbImage)) -> Result<(), ImageError> {
        if !self.is_motion_jpeg() {
            let reason = format!("its frames are coded with {:?}; expected \"MJPG\" (Motion JPEG)", self.codec());
            return Err(ImageError::Coding { image: self.name.to_owned(), format: "AVI", reason });
        }
        let frames = indices.iter().filter(|&&index| index < self.frames.len()).map(|&index| self.full(index));
        let frames: Vec<usize> = frames.collect::<Result<_, _>>()?;
        let mut pixels = 0_u64;
        for &frame in &frames {
            if self.read.is_cancelled() {
                return Err(ImageError::Cancelled { image: self.name.to_owned() });
            }
            pixels = pixels.saturating_add(self.pixels(frame)?);
        }
        let limit = self.read.limits.max_pixels.saturating_mul(MAX_PICTURES);
        if pixels > limit {
            return Err(ImageError::TooManyFramePixels { image: self.name.to_owned(), pixels, limit });
        }
        for frame in frames {
            if self.read.is_cancelled() {
                return Err(ImageError::Cancelled { image: self.name.to_owned() });
            }
            let name = format!("{}, frame {frame} at byte {}", self.name, self.frames[frame].start);
            take(decode(self.data(frame), &name, &self.read.limits, Alpha::White)?);
        }
        Ok(())
    }

    /// Returns the index of the frame that is shown at `index`. If that frame is empty, it repeats an earlier frame,
    /// whose index is returned.
    fn full(&self, index: usize) -> Result<usize, ImageError> {
        let full = (0..=index).rev().find(|&index| self.frames[index].len > 0);
        full.ok_or_else(|| self.damaged(self.frames[index].offset(), "the first frame is empty"))
    }

    /// Returns the number of pixels that a frame's header declares. A frame whose header cannot be read counts as 0
    /// pixels; decoding this frame fails later.
    fn pixels(&self, frame: usize) -> Result<u64, ImageError> {
        let data = self.data(frame);
        match Format::sniff(data) {
            Ok(Format::Jpeg) | Err(_) => {}
            Ok(other) => {
                let reason = format!("frame {frame} is a {} picture; expected JPEG", other.name());
                return Err(self.damaged(self.frames[frame].offset(), &reason));
            }
        }
        let (width, height) = jpeg::Decoder::new(data).map_or((0, 0), |decoder| decoder.size());
        Ok(u64::from(width) * u64::from(height))
    }

    fn data(&self, frame: usize) -> &'a [u8] {
        let Chunk { start, len, .. } = self.frames[frame];
        &self.bytes[start..start + len]
    }

    /// Reads the chunks of the list that occupies the bytes `at..end`.
    fn walk(&mut self, mut at: usize, end: usize, depth: usize) -> Result<(), ImageError> {
        if depth > MAX_DEPTH {
            return Err(self.damaged(at, "the lists are nested too deeply"));
        }
        while at < end {
            if depth == 0 && !self.bytes[at..].starts_with(b"RIFF") {
                return Ok(()); // bytes after the RIFF lists are ignored
            }
            let chunk = self.chunk(at, end)?;
            match &chunk.kind {
                b"RIFF" | b"LIST" => {
                    let kind = self.field(&chunk, 0)?;
                    let (first, end) = (chunk.start + 4, chunk.start + chunk.len);
                    match &kind {
                        b"AVI " | b"AVIX" | b"hdrl" | b"movi" | b"rec " => self.walk(first, end, depth + 1)?,
                        b"strl" => {
                            self.walk(first, end, depth + 1)?;
                            self.header.n_streams += 1;
                        }
                        _ => {}
                    }
                }
                b"avih" => self.header.frame_time = u32::from_le_bytes(self.field(&chunk, 0)?),
                b"strh" => self.read_stream(&chunk)?,
                b"strf" => self.read_format(&chunk)?,
                [tens, ones, b'd', b'c' | b'b'] => self.read_frame(&chunk, [*tens, *ones])?,
                _ => {}
            }
            at = chunk.next();
        }
        Ok(())
    }

    fn chunk(&self, at: usize, end: usize) -> Result<Chunk, ImageError> {
        let head = self.bytes.get(at..end).and_then(|rest| rest.first_chunk::<HEAD>());
        let Some(&[k0, k1, k2, k3, l0, l1, l2, l3]) = head else {
            return Err(self.damaged(at, "the header of a chunk is cut off"));
        };
        let (kind, len) = ([k0, k1, k2, k3], u32::from_le_bytes([l0, l1, l2, l3]) as usize);
        let left = end - at - HEAD;
        if len > left {
            let kind = String::from_utf8_lossy(&kind).into_owned();
            return Err(self.damaged(at, &format!("the chunk {kind:?} has {len} bytes, but only {left} are left")));
        }
        Ok(Chunk { kind, start: at + HEAD, len })
    }

    /// Returns the four bytes at offset `at` of a chunk's data.
    fn field(&self, chunk: &Chunk, at: usize) -> Result<[u8; 4], ImageError> {
        let data = &self.bytes[chunk.start..chunk.start + chunk.len];
        let field = data.get(at..).and_then(|rest| rest.first_chunk());
        field.copied().ok_or_else(|| {
            let kind = String::from_utf8_lossy(&chunk.kind).into_owned();
            self.damaged(chunk.offset(), &format!("the chunk {kind:?} has only {} bytes", chunk.len))
        })
    }

    /// Reads `strh`, the header of a stream. Streams after the first video stream are ignored.
    fn read_stream(&mut self, chunk: &Chunk) -> Result<(), ImageError> {
        if self.header.stream.is_none() && &self.field(chunk, 0)? == b"vids" {
            let codec = self.field(chunk, 4)?;
            let scale = u32::from_le_bytes(self.field(chunk, 20)?);
            let rate = u32::from_le_bytes(self.field(chunk, 24)?);
            let index = self.header.n_streams;
            self.header.stream = Some(Stream { index, rate, scale, codec, is_complete: false });
        }
        Ok(())
    }

    /// Reads `strf`, the format of a stream. For a video stream, this is a `BITMAPINFOHEADER`, whose codec takes
    /// precedence over the codec in `strh`.
    fn read_format(&mut self, chunk: &Chunk) -> Result<(), ImageError> {
        let codec = match &self.header.stream {
            Some(stream) if stream.index == self.header.n_streams => self.field(chunk, 16)?,
            _ => return Ok(()),
        };
        if let Some(stream) = &mut self.header.stream {
            stream.is_complete = true;
            if codec != [0; 4] {
                stream.codec = codec;
            }
        }
        Ok(())
    }

    /// Records a frame if it belongs to the video stream. `number` is the start of the chunk's kind: the index of the
    /// stream in two decimal digits.
    fn read_frame(&mut self, chunk: &Chunk, number: [u8; 2]) -> Result<(), ImageError> {
        let [tens, ones] = number.map(|digit| char::from(digit).to_digit(10));
        let (Some(tens), Some(ones), Some(stream)) = (tens, ones, self.header.stream) else { return Ok(()) };
        if (10 * tens + ones) as usize != stream.index {
            return Ok(());
        }
        if self.frames.len() == MAX_FRAMES {
            return Err(ImageError::TooManyFrames { image: self.name.to_owned(), limit: MAX_FRAMES });
        }
        self.frames.push(*chunk);
        Ok(())
    }

    fn damaged(&self, offset: usize, reason: &str) -> ImageError {
        ImageError::Avi { image: self.name.to_owned(), offset: offset as u64, reason: reason.to_owned() }
    }
}

impl std::fmt::Debug for Avi<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Avi").field("name", &self.name).field("len", &self.len()).finish_non_exhaustive()
    }
}
