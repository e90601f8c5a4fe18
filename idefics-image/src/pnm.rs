//! Decoder for Netpbm formats with the same output as Pillow: PBM, PGM and PPM, plain and raw, and grey PFM.
//!
//! Source: `PpmImagePlugin.py` of Pillow.

use crate::ImageError;
use crate::decode::Input;
use crate::output::{self, Output, RowSink};
use crate::raster::{Pixels, clip};
use crate::raw::{Layout, Rows};

/// Maximum length of a number, in characters.
const MAX_TOKEN: usize = 10;

/// Returns whether the file starts with a magic number, white space, and a number or comment.
pub(crate) fn is_pnm(bytes: &[u8]) -> bool {
    match bytes {
        [b'P', b'1'..=b'6' | b'f', space, rest @ ..] if is_space(*space) => {
            let first = rest.iter().find(|byte| !is_space(**byte));
            first.is_some_and(|&byte| byte.is_ascii_digit() || byte == b'#')
        }
        _ => false,
    }
}

pub(crate) fn decode(bytes: &[u8], input: &Input<'_>, output: Output<'_>) -> Result<RowSink, ImageError> {
    let mut header = Header { rest: bytes.get(3..).unwrap_or_default() };
    let (width, height) = (header.number(input)?, header.number(input)?);
    input.check_size(width, height)?;
    let pixels = u64::from(width) * u64::from(height);
    let mut maxval = || match header.number(input)? {
        maxval @ 1..=65535 => Ok(maxval),
        other => Err(input.damaged(format!("its maximum value is {other}; expected 1 to 65535"))),
    };
    let kind = bytes[1];
    let maxval = if matches!(kind, b'2' | b'3' | b'5' | b'6') { maxval()? } else { 1 };
    let mut rows = output.begin(output::Header::new(width, height), input)?;
    let layout = match (kind, maxval) {
        (b'4', _) => Some(Layout::BitInverted),
        (b'5', 255) => Some(Layout::Grey),
        (b'6', 255) => Some(Layout::RGB),
        _ => None,
    };
    if let Some(layout) = layout {
        let stored = Rows { width, height, layout, stride: layout.row_bytes(width), is_bottom_up: false };
        stored.unpack_bands(header.rest, input, |samples| rows.push(&layout.pixels(samples, None)))?;
        return Ok(rows);
    }
    let pixels = match kind {
        b'1' => Pixels::Grey(plain_bits(header.rest, pixels, input)?),
        b'2' => Pixels::Grey(plain_values(maxval, true, &mut header, pixels, input)?),
        b'3' => Pixels::Rgb(plain_values(maxval, false, &mut header, 3 * pixels, input)?),
        b'5' => Pixels::Grey(raw_values(maxval, true, &header, pixels, input)?),
        b'6' => Pixels::Rgb(raw_values(maxval, false, &header, 3 * pixels, input)?),
        _ => Pixels::Grey(floats(&mut header, width, height, input)?),
    };
    rows.push(&pixels);
    Ok(rows)
}

struct Header<'a> {
    rest: &'a [u8],
}

impl Header<'_> {
    /// Reads a token and consumes the white-space character after it. Comments are skipped, even inside a token.
    fn token(&mut self, input: &Input<'_>) -> Result<String, ImageError> {
        let mut token = String::new();
        while token.len() <= MAX_TOKEN {
            let Some((&byte, rest)) = self.rest.split_first() else { break };
            self.rest = rest;
            match byte {
                b'#' => {
                    let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
                    self.rest = end.map(|end| &rest[end + 1..]).unwrap_or_default();
                }
                byte if !is_space(byte) => token.push(char::from(byte)),
                _ if token.is_empty() => {}
                _ => break,
            }
        }
        match token.len() {
            0 => Err(input.damaged("the file ends within the header")),
            1..=MAX_TOKEN => Ok(token),
            _ => Err(input.damaged("a number in the header is too long")),
        }
    }

    fn number(&mut self, input: &Input<'_>) -> Result<u32, ImageError> {
        let token = self.token(input)?;
        token.parse().map_err(|_| input.damaged(format!("expected a number in the header, found {token:?}")))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 0x09..=0x0d)
}

/// Returns a function that maps values in `0..=maxval` to 8 bits, like Pillow. If `maxval` is above 255, Pillow
/// scales grey to 16 bits and then clips it: all levels above 255 become white.
fn scaler(maxval: u32, is_grey: bool) -> impl Fn(u32) -> u8 {
    let is_wide = is_grey && maxval > 255;
    let out_max = if is_wide { 65535.0 } else { 255.0 };
    move |value| {
        let scaled = (f64::from(value) / f64::from(maxval) * out_max).round_ties_even();
        if is_wide { clip(scaled as u16) } else { scaled.min(255.0) as u8 }
    }
}

fn raw_values(
    maxval: u32,
    is_grey: bool,
    header: &Header<'_>,
    count: u64,
    input: &Input<'_>,
) -> Result<Vec<u8>, ImageError> {
    input.check_memory(count)?;
    let size = if maxval > 255 { 2 } else { 1 };
    let data = header.rest.get(..size * count as usize).ok_or_else(|| input.damaged("the file ends early"))?;
    let scale = scaler(maxval, is_grey);
    Ok(match maxval {
        0..=255 => {
            let table: Vec<u8> = (0..=255).map(scale).collect();
            data.iter().map(|&value| table[usize::from(value)]).collect()
        }
        _ => data.as_chunks().0.iter().map(|&value| scale(u16::from_be_bytes(value).into())).collect(),
    })
}

/// Removes comments from the data. The text before and after a comment is joined.
fn uncommented(data: &[u8]) -> Vec<u8> {
    let mut is_comment = false;
    let mut text = Vec::with_capacity(data.len());
    for &byte in data {
        match byte {
            b'\r' | b'\n' if is_comment => is_comment = false,
            _ if is_comment => {}
            b'#' => is_comment = true,
            byte => text.push(byte),
        }
    }
    text
}

fn plain_bits(data: &[u8], count: u64, input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
    input.check_memory(count)?;
    let mut bits = Vec::new();
    for byte in uncommented(data) {
        match byte {
            b'0' => bits.push(255),
            b'1' => bits.push(0),
            byte if is_space(byte) => {}
            byte => return Err(input.damaged(format!("expected 0 or 1, found the byte {byte:02x}"))),
        }
    }
    bits.truncate(count as usize);
    if bits.len() as u64 == count { Ok(bits) } else { Err(input.damaged("the file ends early")) }
}

fn plain_values(
    maxval: u32,
    is_grey: bool,
    header: &mut Header<'_>,
    count: u64,
    input: &Input<'_>,
) -> Result<Vec<u8>, ImageError> {
    input.check_memory(count)?;
    let text = uncommented(header.rest);
    let scale = scaler(maxval, is_grey);
    let mut values = Vec::new();
    for token in text.split(|&byte| is_space(byte)).filter(|token| !token.is_empty()).take(count as usize) {
        let number = std::str::from_utf8(token).ok().filter(|text| text.len() <= MAX_TOKEN);
        match number.and_then(|text| text.parse::<u32>().ok()) {
            Some(value) if value <= maxval => values.push(scale(value)),
            _ => {
                let token = String::from_utf8_lossy(&token[..token.len().min(MAX_TOKEN)]).into_owned();
                return Err(input.damaged(format!("expected a number from 0 to {maxval}, found {token:?}")));
            }
        }
    }
    if values.len() as u64 == count { Ok(values) } else { Err(input.damaged("the file ends early")) }
}

/// Reads 32-bit floats, bottom row first. A negative scale means little-endian. Values are clipped to 0..255.
fn floats(header: &mut Header<'_>, width: u32, height: u32, input: &Input<'_>) -> Result<Vec<u8>, ImageError> {
    let token = header.token(input)?;
    let scale = token.parse::<f64>().ok().filter(|scale| scale.is_finite() && *scale != 0.0);
    let scale =
        scale.ok_or_else(|| input.damaged(format!("its scale is {token:?}; expected a number other than 0")))?;
    let count = u64::from(width) * u64::from(height);
    input.check_memory(count)?;
    let data = header.rest.get(..4 * count as usize).ok_or_else(|| input.damaged("the file ends early"))?;
    let mut grey = Vec::with_capacity(count as usize);
    for row in data.chunks_exact(4 * width as usize).rev() {
        grey.extend(row.as_chunks().0.iter().map(|&bytes| {
            let value = if scale < 0.0 { f32::from_le_bytes(bytes) } else { f32::from_be_bytes(bytes) };
            value as u8 // saturates, like `f2l` of Pillow
        }));
    }
    Ok(grey)
}
