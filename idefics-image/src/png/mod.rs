//! PNG decoder with the same output as Pillow.
//!
//! This module parses the chunks itself, so that it tolerates the same damage as Pillow: checksums are verified only up
//! to the pixel data, and the file may end after the pixel data. The crate `png` decodes the pixels.
//!
//! Source: `PngImagePlugin.py` and `ZipDecode.c` of Pillow.

mod animation;
mod packed;

use image::metadata::Orientation;

use crate::ImageError;
use crate::decode::Input;
use crate::orientation::orientation;
use crate::output::{self, Output, RowSink, RowSpace};
use crate::raster::{Keys, Palette, Pixels, Raster, clip};
pub(crate) use animation::animation;
use packed::PackedPixels;

pub(crate) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Maximum length in bytes of a decompressed text chunk, as in Pillow.
const MAX_TEXT: usize = 1 << 20;

// Colour types.
const GREY: u8 = 0;
const RGB: u8 = 2;
const PALETTE: u8 = 3;
const GREY_ALPHA: u8 = 4;
const RGBA: u8 = 6;

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>, output: Output<'_>) -> Result<RowSink, ImageError> {
    let file = File::read(bytes, input)?;
    let header = file.header.as_ref().ok_or_else(|| input.damaged("there is no header"))?;
    let (width, height, orientation) = (header.width, header.height, file.texts.orientation());
    let keys = file.keys(header);
    let pixels = PackedPixels::new(header, &file, input)?;
    let mut rows = output.begin(output::Header { width, height, orientation, keys }, input)?;
    if header.is_interlaced || file.frame.is_some_and(|frame| frame != Frame::whole(header)) {
        rows.push(&file.whole(header, pixels)?);
    } else if header.is_rgb() && keys == Keys::default() && rows.is_copy() {
        pixels.read_to(rows.space(3 * width as usize * height as usize))?;
        rows.take();
    } else {
        pixels.read_bands(|band| rows.push(&file.unpack(header, band)))?;
    }
    Ok(rows)
}

/// Decodes the stored pixels and ignores orientation and colour keys.
pub(crate) fn decode_stored(bytes: &[u8], input: &Input<'_>) -> Result<Raster, ImageError> {
    let file = File::read(bytes, input)?;
    let header = file.header.as_ref().ok_or_else(|| input.damaged("there is no header"))?;
    let pixels = file.whole(header, PackedPixels::new(header, &file, input)?)?;
    Ok(Raster::new(header.width, header.height, pixels))
}

/// The parsed chunks.
#[derive(Debug, Default)]
struct File<'a> {
    header: Option<Header>,
    palette: &'a [u8],
    transparency: Option<&'a [u8]>,
    /// The rectangle that the pixels cover, if the default image is the first frame of an animation.
    frame: Option<Frame>,
    /// The compressed pixels, one slice per chunk.
    data: Vec<&'a [u8]>,
    texts: Texts,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    width: u32,
    height: u32,
    depth: u8,
    color_type: u8,
    is_interlaced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

impl Frame {
    fn whole(header: &Header) -> Self {
        Self { left: 0, top: 0, width: header.width, height: header.height }
    }
}

/// Texts that may contain an orientation.
#[derive(Debug, Default)]
struct Texts {
    exif: Option<Vec<u8>>,
    raw_profile: Option<Vec<u8>>,
    /// XMP that is valid UTF-8 text. It takes precedence over `xmp`.
    xmp_text: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
}

/// A chunk: its kind, data and stored checksum, and the offset of the next chunk.
struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
    sum: Option<[u8; 4]>,
    next: usize,
}

/// Why a chunk cannot be read.
enum NoChunk<'a> {
    /// The chunk header is incomplete or invalid.
    Header,
    /// The file ends within the chunk's data. The fields are the kind of the chunk and the data up to the end of the
    /// file.
    Data([u8; 4], &'a [u8]),
}

fn chunk_at(bytes: &[u8], at: usize) -> Result<Chunk<'_>, NoChunk<'_>> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some((head, rest)) = rest.split_first_chunk::<8>() else { return Err(NoChunk::Header) };
    let [a, b, c, d, kind @ ..] = *head;
    if !kind.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(NoChunk::Header);
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let Some((data, rest)) = rest.split_at_checked(length) else { return Err(NoChunk::Data(kind, rest)) };
    Ok(Chunk { kind, data, sum: rest.first_chunk().copied(), next: at + 12 + length })
}

impl<'a> File<'a> {
    fn read(bytes: &'a [u8], input: &Input<'_>) -> Result<Self, ImageError> {
        let mut file = Self::default();
        let mut at = SIGNATURE.len();
        // Every chunk before the pixels must be complete.
        loop {
            let chunk = match chunk_at(bytes, at) {
                Ok(chunk) => chunk,
                Err(NoChunk::Data(kind, _)) if kind == *b"IDAT" => break,
                Err(NoChunk::Header) => return Err(input.damaged("a chunk header is missing or damaged")),
                Err(NoChunk::Data(..)) => return Err(input.damaged("the file ends within a chunk")),
            };
            match &chunk.kind {
                b"IDAT" => break,
                b"IEND" => return Err(input.damaged("there is no pixel data")),
                _ => {}
            }
            let mut sum = crc32fast::Hasher::new();
            sum.update(&chunk.kind);
            sum.update(chunk.data);
            if chunk.sum != Some(sum.finalize().to_be_bytes()) {
                return Err(input.damaged(format!("the checksum of chunk {} is wrong", name(chunk.kind))));
            }
            file.read_chunk(&chunk, input)?;
            at = chunk.next;
        }
        // The pixel data may end early; decompression decides whether there is enough.
        loop {
            match chunk_at(bytes, at) {
                Ok(chunk) if matches!(&chunk.kind, b"IDAT" | b"DDAT") => {
                    if !chunk.data.is_empty() {
                        file.data.push(chunk.data);
                    }
                    at = chunk.next;
                }
                Err(NoChunk::Data(kind, rest)) if matches!(&kind, b"IDAT" | b"DDAT") => {
                    file.data.push(rest);
                    return Ok(file);
                }
                _ => break,
            }
        }
        // After the pixel data, checksums are not verified, and a damaged header ends the file.
        loop {
            match chunk_at(bytes, at) {
                Ok(chunk) if chunk.kind == *b"IEND" || chunk.kind == *b"fcTL" => return Ok(file),
                Ok(chunk) => {
                    file.read_chunk(&chunk, input)?;
                    at = chunk.next;
                }
                Err(NoChunk::Data(kind, _)) if kind == *b"IEND" => return Ok(file),
                Err(NoChunk::Data(..)) => return Err(input.damaged("the file ends within a chunk")),
                Err(NoChunk::Header) => return Ok(file),
            }
        }
    }

    fn read_chunk(&mut self, chunk: &Chunk<'a>, input: &Input<'_>) -> Result<(), ImageError> {
        let data = chunk.data;
        match &chunk.kind {
            b"IHDR" if self.header.is_some() => return Err(input.damaged("there are two headers")),
            b"IHDR" => self.header = Some(Header::parse(data, input)?),
            b"PLTE" => self.palette = data,
            b"tRNS" => self.transparency = Some(data),
            b"fcTL" => self.frame = Some(self.parse_frame(data, input)?),
            b"eXIf" => self.texts.exif = Some(data.to_vec()),
            b"tEXt" => {
                let (key, value) = split_at_zero(data).unwrap_or((data, &[]));
                self.texts.set(key, || Ok(value.to_vec()), true)?;
            }
            b"zTXt" => {
                let (key, value) = split_at_zero(data).unwrap_or((data, &[]));
                self.texts.set(key, || inflate_text(value.get(1..).unwrap_or_default(), input), false)?;
            }
            b"iTXt" => self.read_international(data, input)?,
            _ => {}
        }
        Ok(())
    }

    fn parse_frame(&self, data: &[u8], input: &Input<'_>) -> Result<Frame, ImageError> {
        let field =
            |at: usize| data.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes));
        let (Some(width), Some(height), Some(left), Some(top), Some(header)) =
            (field(4), field(8), field(12), field(16), self.header)
        else {
            return Err(input.damaged("a frame header is too short"));
        };
        let fits =
            |start: u32, length: u32, whole: u32| length > 0 && u64::from(start) + u64::from(length) <= whole.into();
        if !fits(left, width, header.width) || !fits(top, height, header.height) {
            return Err(input.damaged("a frame reaches outside the image"));
        }
        Ok(Frame { left, top, width, height })
    }

    /// Reads an iTXt chunk: key, compression, language and translated key, then the text.
    fn read_international(&mut self, data: &[u8], input: &Input<'_>) -> Result<(), ImageError> {
        let parts = || {
            let (key, rest) = split_at_zero(data)?;
            let (&[is_compressed, method], rest) = rest.split_first_chunk()?;
            let (language, rest) = split_at_zero(rest)?;
            let (translated, text) = split_at_zero(rest)?;
            Some((key, is_compressed != 0, method, language, translated, text))
        };
        let Some((key, is_compressed, method, language, translated, text)) = parts() else { return Ok(()) };
        if is_compressed && method != 0 || !matches!(key, Texts::XMP | Texts::RAW_PROFILE) {
            return Ok(());
        }
        let text = if is_compressed { inflate_text(text, input)? } else { text.to_vec() };
        if key == Texts::XMP {
            self.texts.xmp = Some(text.clone());
        }
        if [language, translated, &text].iter().all(|part| std::str::from_utf8(part).is_ok()) {
            self.texts.set(key, || Ok(text), false)?;
        }
        Ok(())
    }

    /// Returns the colour keys of the file.
    fn keys(&self, header: &Header) -> Keys {
        let key_at = |at: usize| {
            let value = self.transparency?.get(2 * at..)?.first_chunk()?;
            Some(u16::from_be_bytes(*value))
        };
        let keys = match (header.color_type, header.depth) {
            (GREY, 1) => key_at(0).map(|key| {
                let level = if key == 0 { 0 } else { 255 };
                Keys { over_white: Some([level; 3]), dropped: Some([level, 0, 0]) }
            }),
            (GREY, 16) => key_at(0).map(|key| {
                let low = key as u8;
                Keys { over_white: Some([low; 3]), dropped: Some([low, 0, 0]) }
            }),
            (GREY, _) => key_at(0).map(|key| Keys { over_white: Some([key as u8; 3]), dropped: Some([clip(key); 3]) }),
            (PALETTE, _) => Some(Keys { over_white: None, dropped: self.transparent_color() }),
            (RGB, _) => {
                let key = || Some([key_at(0)? as u8, key_at(1)? as u8, key_at(2)? as u8]);
                key().map(Keys::both)
            }
            _ => None,
        };
        keys.unwrap_or_default()
    }

    /// Decodes all pixels. If they cover only a part of the image, they are placed on a canvas of the image's size.
    fn whole(&self, header: &Header, pixels: PackedPixels<'_>) -> Result<Pixels, ImageError> {
        let pixels = self.unpack(header, pixels.read_whole()?);
        Ok(match self.frame {
            Some(frame) if frame != Frame::whole(header) => on_canvas(pixels, header, frame),
            _ => pixels,
        })
    }

    /// Unpacks rows to one of Pillow's pixel formats.
    fn unpack(&self, header: &Header, packed: Vec<u8>) -> Pixels {
        match (header.color_type, header.depth) {
            (GREY, 1) => Pixels::Grey(self.unpack_bits(header, &packed, 255)),
            (GREY, 2) => Pixels::Grey(self.unpack_bits(header, &packed, 0x55)),
            (GREY, 4) => Pixels::Grey(self.unpack_bits(header, &packed, 0x11)),
            (GREY, 16) => {
                Pixels::Grey(packed.as_chunks().0.iter().map(|&level| clip(u16::from_be_bytes(level))).collect())
            }
            (GREY, _) => Pixels::Grey(packed),
            (PALETTE, 8) => Pixels::Indexed(packed, self.palette()),
            (PALETTE, _) => Pixels::Indexed(self.unpack_bits(header, &packed, 1), self.palette()),
            (RGB, depth) => Pixels::Rgb(high_bytes(packed, depth)),
            (GREY_ALPHA, depth) => Pixels::GreyAlpha(high_bytes(packed, depth)),
            (_, depth) => Pixels::Rgba(high_bytes(packed, depth)),
        }
    }

    fn palette(&self) -> Palette {
        let mut palette = Palette::from_rgb(self.palette);
        for (entry, &alpha) in palette.0.iter_mut().zip(self.transparency.unwrap_or_default()) {
            entry[3] = alpha;
        }
        palette
    }

    /// Returns the colour of the only transparent palette entry, if all other entries are opaque. Pillow's
    /// `convert("RGB")` treats it as a colour key.
    fn transparent_color(&self) -> Option<[u8; 3]> {
        let alphas = self.transparency?;
        let clear = alphas.iter().position(|&alpha| alpha == 0)?;
        let is_only = alphas.iter().enumerate().all(|(at, &alpha)| at == clear || alpha == 255);
        let index = u8::try_from(clear).ok().filter(|_| is_only)?;
        Some(self.palette().color(index))
    }

    /// Unpacks samples of less than 8 bits to one byte each, multiplied by `scale`.
    fn unpack_bits(&self, header: &Header, packed: &[u8], scale: u8) -> Vec<u8> {
        let frame = self.frame.unwrap_or(Frame::whole(header));
        let depth = usize::from(header.depth);
        let mask = (1_u8 << depth) - 1;
        let width = frame.width as usize;
        let rows = packed.chunks_exact((width * depth).div_ceil(8));
        let mut samples = Vec::with_capacity(width * rows.len());
        for row in rows {
            samples.extend((0..width).map(|x| {
                let shift = 8 - depth - x * depth % 8;
                (row[x * depth / 8] >> shift & mask) * scale
            }));
        }
        samples
    }
}

impl Header {
    fn parse(data: &[u8], input: &Input<'_>) -> Result<Self, ImageError> {
        let Some(&[w0, w1, w2, w3, h0, h1, h2, h3, depth, color_type, _, filter, interlace]) = data.first_chunk()
        else {
            return Err(input.damaged("the header is too short"));
        };
        let (width, height) = (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
        input.check_size(width, height)?;
        let is_known = match color_type {
            GREY => matches!(depth, 1 | 2 | 4 | 8 | 16),
            PALETTE => matches!(depth, 1 | 2 | 4 | 8),
            RGB | GREY_ALPHA | RGBA => matches!(depth, 8 | 16),
            _ => false,
        };
        if !is_known || filter != 0 {
            let reason = format!("its header has colour type {color_type}, depth {depth} and filter method {filter}");
            return Err(input.damaged(reason));
        }
        Ok(Self { width, height, depth, color_type, is_interlaced: interlace != 0 })
    }

    /// Returns whether the pixels are stored as 8-bit RGB.
    fn is_rgb(&self) -> bool {
        (self.color_type, self.depth) == (RGB, 8)
    }

    fn channels(&self) -> u64 {
        match self.color_type {
            GREY | PALETTE => 1,
            GREY_ALPHA => 2,
            RGB => 3,
            _ => 4,
        }
    }
}

impl Texts {
    const XMP: &[u8] = b"XML:com.adobe.xmp";
    const RAW_PROFILE: &[u8] = b"Raw profile type exif";

    /// Stores a text if texts with its key may contain an orientation. `is_plain` says that the text is from a tEXt
    /// chunk.
    fn set(
        &mut self,
        key: &[u8],
        text: impl FnOnce() -> Result<Vec<u8>, ImageError>,
        is_plain: bool,
    ) -> Result<(), ImageError> {
        match key {
            Self::XMP => self.xmp_text = Some(text()?),
            Self::RAW_PROFILE => self.raw_profile = Some(text()?),
            b"exif" if is_plain => self.exif = Some(text()?),
            _ => {}
        }
        Ok(())
    }

    fn orientation(&self) -> Orientation {
        let profile = || self.raw_profile.as_deref().map(|text| parse_profile(text).unwrap_or_default());
        let exif = self.exif.clone().or_else(profile);
        let xmp = self.xmp_text.as_deref().filter(|text| !text.is_empty()).or(self.xmp.as_deref());
        orientation(exif.as_deref(), xmp)
    }
}

/// Decodes a profile in ImageMagick's format: an empty line, a line with the name, a line with the length, then
/// hexadecimal digits. Returns `None` if the digits are invalid.
fn parse_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.split(|&byte| byte == b'\n').skip(3).flatten().copied().collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    let mut rest = digits.as_slice();
    loop {
        rest = match rest {
            [] => return Some(bytes),
            [b' ' | b'\t' | b'\r' | 0x0b | 0x0c, rest @ ..] => rest,
            &[high, low, ref rest @ ..] => {
                bytes.push(digit(high)? << 4 | digit(low)?);
                rest
            }
            [_] => return None,
        }
    }
}

/// Splits at the first zero byte.
fn split_at_zero(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|&byte| byte == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

/// Decompresses a text. Damaged data gives an empty text. Truncated data gives the part of the text that is there. A
/// text longer than [`MAX_TEXT`] is an error.
fn inflate_text(data: &[u8], input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
    let mut decompressor = fdeflate::Decompressor::new();
    let mut text = vec![0; MAX_TEXT + 1];
    let (mut consumed, mut produced) = (0, 0);
    while !decompressor.is_done() {
        match decompressor.read(&data[consumed..], &mut text, produced, false) {
            Ok((0, 0)) => break,
            Ok((read, written)) => (consumed, produced) = (consumed + read, produced + written),
            Err(_) => return Ok(Vec::new()),
        }
        if produced > MAX_TEXT {
            return Err(input.damaged("a text chunk is larger than a megabyte"));
        }
    }
    text.truncate(produced);
    Ok(text)
}

/// Keeps the high byte of 16-bit samples.
fn high_bytes(packed: Vec<u8>, depth: u8) -> Vec<u8> {
    if depth == 16 { packed.as_chunks::<2>().0.iter().map(|&[high, _]| high).collect() } else { packed }
}

/// Places a frame on a canvas of the size of the image. The area around the frame is zero.
fn on_canvas(pixels: Pixels, header: &Header, frame: Frame) -> Pixels {
    let place = |data: Vec<u8>, channels: usize| {
        let stride = header.width as usize * channels;
        let row = frame.width as usize * channels;
        let mut canvas = vec![0; stride * header.height as usize];
        for (y, source) in data.chunks_exact(row).enumerate() {
            let start = (frame.top as usize + y) * stride + frame.left as usize * channels;
            canvas[start..start + row].copy_from_slice(source);
        }
        canvas
    };
    match pixels {
        Pixels::Grey(data) => Pixels::Grey(place(data, 1)),
        Pixels::GreyAlpha(data) => Pixels::GreyAlpha(place(data, 2)),
        Pixels::Rgb(data) => Pixels::Rgb(place(data, 3)),
        Pixels::Rgba(data) => Pixels::Rgba(place(data, 4)),
        Pixels::Indexed(data, palette) => Pixels::Indexed(place(data, 1), palette),
        other => other,
    }
}

fn name(kind: [u8; 4]) -> String {
    String::from_utf8_lossy(&kind).into_owned()
}
