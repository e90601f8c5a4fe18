//! Lists the frames of animated PNG (APNG) files. A default image that does not belong to the animation is skipped.
//!
//! Source: the third edition of the PNG specification.

use std::time::Duration;

use super::{Chunk, File, Frame, Header, NoChunk, SIGNATURE, Texts, chunk_at};
use crate::ImageError;
use crate::animation::{Blend, Dispose, FrameInfo, Frames, to_rgba};
use crate::decode::Input;
use crate::png::packed::PackedPixels;

/// Lists the frames of an animation. Returns `None` for a still image.
pub(crate) fn animation<'a>(
    bytes: &'a [u8],
    input: &Input<'_>,
    max_frames: usize,
) -> Result<Option<Frames<'a>>, ImageError> {
    let mut file = File::default(); // everything except the frames
    let mut is_animated = false;
    let mut frames: Vec<(FrameInfo, Vec<&'a [u8]>)> = Vec::new();
    let mut at = SIGNATURE.len();
    loop {
        let chunk = match chunk_at(bytes, at) {
            Ok(chunk) => chunk,
            Err(NoChunk::Header | NoChunk::Data(..)) if !is_animated => return Ok(None),
            Err(NoChunk::Header) => return Err(input.damaged("a chunk header is missing or damaged")),
            Err(NoChunk::Data(..)) => return Err(input.damaged("the file ends within a chunk")),
        };
        at = chunk.next;
        match &chunk.kind {
            b"IEND" => break,
            b"acTL" => is_animated = true,
            // In an animated file, `acTL` precedes the pixel data.
            b"IDAT" if !is_animated => return Ok(None),
            b"IDAT" => {
                if let Some((_, data)) = frames.last_mut() {
                    data.push(chunk.data);
                }
            }
            b"fdAT" => {
                let data = chunk.data.get(4..).ok_or_else(|| input.damaged("the data of a frame is too short"))?;
                let frame = frames.last_mut().ok_or_else(|| input.damaged("a frame has no header"))?;
                frame.1.push(data);
            }
            b"fcTL" if frames.len() == max_frames => return Err(input.too_many_frames(max_frames)),
            b"fcTL" => {
                let frame = file.parse_frame(chunk.data, input)?;
                frames.push((info(&chunk, frame, frames.is_empty()), Vec::new()));
            }
            b"IHDR" | b"PLTE" | b"tRNS" => file.read_chunk(&chunk, input)?,
            _ => {}
        }
    }
    let header = file.header.ok_or_else(|| input.damaged("there is no header"))?;
    if frames.is_empty() {
        return Ok(None);
    }
    let (palette, transparency, key) = (file.palette, file.transparency, file.keys(&header).over_white);
    let infos = frames.iter().map(|(info, _)| *info).collect();
    let pixels = move |index: usize, input: &Input<'_>| -> Result<Vec<u8>, ImageError> {
        let (info, data) = &frames[index];
        let header = Header { width: info.width, height: info.height, ..header };
        let data = data.iter().copied().filter(|data| !data.is_empty()).collect();
        let file = File { header: Some(header), palette, transparency, frame: None, data, texts: Texts::default() };
        let pixels = file.whole(&header, PackedPixels::new(&header, &file, input)?)?;
        Ok(to_rgba(&pixels, key))
    };
    let canvas = (header.width, header.height);
    Ok(Some(Frames { canvas, backdrop: [0; 4], infos, pixels: Box::new(pixels) }))
}

fn info(chunk: &Chunk<'_>, Frame { left, top, width, height }: Frame, is_first: bool) -> FrameInfo {
    let byte = |at: usize| chunk.data.get(at).copied().unwrap_or(0);
    let short = |at: usize| u32::from(u16::from_be_bytes([byte(at), byte(at + 1)]));
    let (numerator, denominator) = (short(20), short(22));
    let denominator = if denominator == 0 { 100 } else { denominator };
    let dispose = match byte(24) {
        1 => Dispose::Fill([0; 4]),
        2 if is_first => Dispose::Fill([0; 4]),
        2 => Dispose::Previous,
        _ => Dispose::Keep,
    };
    let blend = if byte(25) == 1 { Blend::Over } else { Blend::Replace };
    FrameInfo {
        left,
        top,
        width,
        height,
        duration: Duration::from_secs(numerator.into()) / denominator,
        dispose,
        blend,
    }
}
