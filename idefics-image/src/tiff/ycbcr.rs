//! Decodes YCbCr with subsampled chroma, for compressions other than JPEG.
//!
//! Chroma is repeated, not interpolated. Damaged strips and tiles are not an error. Where data is missing, all
//! components are 0, which is dark green.
//!
//! Source: `TiffDecode.c` of Pillow (`_decodeAsRGBA`), `tif_getimage.c` and `tif_color.c` of libtiff 4.7.

use super::TiffError;
use super::chunks::Chunks;
use super::compressed::{Place, Reader};
use super::error::zeroed;
use super::page::{Compression, Page};
use super::tag::Tag;

/// Lookup tables that convert YCbCr to RGB.
#[derive(Debug)]
pub(super) struct Colors {
    luma: [i32; 256],
    cr_red: [i32; 256],
    cb_blue: [i32; 256],
    /// The contributions of Cr and Cb to green, in units of 1/65536. `cb_green` includes one half for rounding.
    cr_green: [i32; 256],
    cb_green: [i32; 256],
}

impl Colors {
    /// Builds the tables of a page from the tags YCbCrCoefficients (the weights of the colours in luma) and
    /// ReferenceBlackWhite (the codes of black and white of each component).
    pub(super) fn new(page: &Page<'_>) -> Result<Self, TiffError> {
        const SHIFT: i32 = 16;
        const HALF: i32 = 1 << (SHIFT - 1);
        let [red, green, blue] = page.tags.floats(Tag::Y_CB_CR_COEFFICIENTS).unwrap_or([0.299_f32, 0.587, 0.114]);
        if green == 0.0 {
            return Err(TiffError::damaged("the tag YCbCrCoefficients (529) has the value 0 for green"));
        }
        let levels: [f32; 6] =
            page.tags.floats(Tag::REFERENCE_BLACK_WHITE).unwrap_or([0.0, 255.0, 128.0, 255.0, 128.0, 255.0]);
        let fixed = |factor: f32| {
            let factor = if factor >= 0.0 { factor.min(2.0) } else { 0.0 };
            (f64::from(factor) * 65536.0 + 0.5) as i32
        };
        let (for_red, for_blue) = (2.0 - 2.0 * red, 2.0 - 2.0 * blue);
        let (d1, d2) = (fixed(for_red), -fixed(red * for_red / green));
        let (d3, d4) = (fixed(for_blue), -fixed(blue * for_blue / green));
        let value = |code: i32, black: f32, white: f32, range: f32| {
            let step = if white - black == 0.0 { 1.0 } else { white - black };
            // libtiff truncates the black level to a whole number.
            let value = (code - black as i32) as f32 * range / step;
            value.clamp(-128.0 * 32.0, 128.0 * 32.0) as i32
        };
        let mut colors =
            Self { luma: [0; 256], cr_red: [0; 256], cb_blue: [0; 256], cr_green: [0; 256], cb_green: [0; 256] };
        for code in 0..256_usize {
            let x = code as i32 - 128;
            let cr = value(x, levels[4] - 128.0, levels[5] - 128.0, 127.0);
            let cb = value(x, levels[2] - 128.0, levels[3] - 128.0, 127.0);
            colors.cr_red[code] = d1.wrapping_mul(cr).wrapping_add(HALF) >> SHIFT;
            colors.cb_blue[code] = d3.wrapping_mul(cb).wrapping_add(HALF) >> SHIFT;
            colors.cr_green[code] = d2.wrapping_mul(cr);
            colors.cb_green[code] = d4.wrapping_mul(cb).wrapping_add(HALF);
            colors.luma[code] = value(code as i32, levels[0], levels[1], 255.0);
        }
        Ok(colors)
    }

    pub(super) fn rgb(&self, [luma, cb, cr]: [u8; 3]) -> [u8; 3] {
        let (y, cb, cr) = (self.luma[usize::from(luma)], usize::from(cb), usize::from(cr));
        let green = self.cb_green[cb].wrapping_add(self.cr_green[cr]) >> 16;
        [y + self.cr_red[cr], y + green, y + self.cb_blue[cb]].map(|value| value.clamp(0, 255) as u8)
    }
}

/// Returns the size of a unit, in bytes. A unit is a block of luma samples that share chroma, followed by one Cb and
/// one Cr sample.
fn unit(page: &Page<'_>) -> usize {
    page.chroma[0] * page.chroma[1] + 2
}

/// Returns the size of one row of units (see [`unit`]) of a strip or tile, in bytes.
fn row_bytes(page: &Page<'_>) -> usize {
    page.cut.width.div_ceil(page.chroma[0]).saturating_mul(unit(page))
}

/// Returns the number of bytes per decoded strip or tile.
pub(super) fn decoded_bytes(page: &Page<'_>) -> usize {
    row_bytes(page).saturating_mul(page.cut.height.div_ceil(page.chroma[1]))
}

/// Decodes a page to RGB, and passes each row of strips or tiles to `take`: `[rows, width, 3]`.
pub(super) fn decode(page: &Page<'_>, max_bytes: u64, mut take: impl FnMut(Vec<u8>)) -> Result<(), TiffError> {
    if page.is_planar {
        return Err(TiffError::coding("YCbCr in planes (tag PlanarConfiguration)"));
    }
    let colors = Colors::new(page)?;
    let (width, height) = (page.width as usize, page.height as usize);
    let cut = page.cut;
    let [samples_across, samples_down] = page.chroma;
    let (unit, row_bytes) = (unit(page), row_bytes(page));
    let mut reader = Reader::new(page, max_bytes)?;
    let chunks = Chunks::new(page, decoded_bytes(page))?;
    let mut buffer = zeroed(decoded_bytes(page))?;
    for down in 0..cut.down {
        let top = down * cut.height;
        let visible = cut.height.min(height - top);
        let rows = if cut.is_tiled { cut.height } else { visible };
        let mut band = zeroed(3 * width * visible)?;
        for across in 0..cut.across {
            let left = across * cut.width;
            let columns = cut.width.min(width - left);
            let samples = &mut buffer[..row_bytes * rows.div_ceil(samples_down)];
            let chunk = chunks.get(down * cut.across + across)?;
            samples.fill(0);
            // libtiff continues after an error here. It keeps the samples decoded so far, except for damaged deflate
            // data.
            let is_read = reader.read(page, chunk, Place { top, rows }, samples).is_ok();
            if !is_read && page.compression == Compression::Deflate {
                samples.fill(0);
            }
            for y in 0..visible {
                let row = &buffer[y / samples_down * row_bytes..][..row_bytes];
                let out = &mut band[3 * (y * width + left)..][..3 * columns];
                for (x, out) in out.chunks_exact_mut(3).enumerate() {
                    let unit = &row[x / samples_across * unit..][..unit];
                    let luma = unit[y % samples_down * samples_across + x % samples_across];
                    let chroma = samples_across * samples_down;
                    out.copy_from_slice(&colors.rgb([luma, unit[chroma], unit[chroma + 1]]));
                }
            }
        }
        take(band);
    }
    Ok(())
}
