//! Converts YCbCr to RGB with the arithmetic of libavif and libyuv.
//!
//! Source: `reformat.c` and `reformat_libyuv.c` of libavif 1.4; `row_common.cc`, `convert_argb.cc`, `scale_any.cc` and
//! `scale_common.cc` of libyuv.

use super::av1::{ColorCodes, Frame, Plane, Sampling};

/// Fixed-point conversion weights in units of 1/64, and the factor and bias of luma.
#[derive(Debug, Clone, Copy)]
struct Weights {
    luma: u32,
    bias: i32,
    blue: i32,
    green_u: i32,
    green_v: i32,
    red: i32,
}

impl Weights {
    /// Returns the weights that libyuv uses for these colours, or `None` if libyuv does not support them.
    fn new(colors: ColorCodes, is_mono: bool) -> Option<Self> {
        let matrix = match (colors.matrix, colors.primaries) {
            (0, _) if is_mono => 6,
            (12, 1 | 2) => 1,
            (12, 5 | 6) => 6,
            (12, 9) => 9,
            (matrix, _) => matrix,
        };
        let limited = |luma, blue, green_u, green_v, red| Self { luma, bias: -1160, blue, green_u, green_v, red };
        let full = |blue, green_u, green_v, red| Self { luma: 16320, bias: 32, blue, green_u, green_v, red };
        match (matrix, colors.is_full_range) {
            (1, false) => Some(limited(18997, 128, 14, 34, 115)),
            (2 | 5 | 6, false) => Some(limited(18997, 128, 25, 52, 102)),
            (9, false) => Some(limited(19003, 128, 12, 42, 107)),
            (1, true) => Some(full(119, 12, 30, 101)),
            (2 | 5 | 6, true) => Some(full(113, 22, 46, 90)),
            (9, true) => Some(full(120, 11, 37, 94)),
            _ => None,
        }
    }

    fn luma(self, y: u32) -> i32 {
        ((y * self.luma) >> 16) as i32 + self.bias
    }

    /// Converts one pixel. `y` has 16 bits, `u` and `v` have 8.
    fn rgb(self, y: u32, u: i32, v: i32) -> [u8; 3] {
        let (y, u, v) = (self.luma(y), u - 128, v - 128);
        let clamp = |value: i32| (value >> 6).clamp(0, 255) as u8;
        [clamp(y + v * self.red), clamp(y - (u * self.green_u + v * self.green_v)), clamp(y + u * self.blue)]
    }
}

/// Converts a frame to RGB, `[height, width, 3]`. `has_alpha` says whether the image has alpha: libavif converts images
/// with and without alpha in different ways.
pub(super) fn to_rgb(frame: &Frame, colors: ColorCodes, has_alpha: bool) -> Result<Vec<u8>, String> {
    let is_mono = frame.sampling == Sampling::Mono;
    match Weights::new(colors, is_mono) {
        // libavif converts grey without alpha in floating point.
        Some(weights) if !is_mono || has_alpha => Ok(fixed(frame, weights, has_alpha)),
        _ => float(frame, colors),
    }
}

/// Converts a frame to RGB in fixed point, like libyuv. Chroma is upsampled to the size of luma. Samples keep their
/// depth if libyuv has a routine for that depth. Otherwise, they are first reduced to 8 bits.
fn fixed(frame: &Frame, weights: Weights, has_alpha: bool) -> Vec<u8> {
    // For images with alpha, libyuv has routines for 10 bits. It also has a routine for 12-bit 4:2:0, which does not
    // filter chroma.
    let keeps_depth = has_alpha
        && match frame.depth {
            10 => frame.sampling != Sampling::Mono,
            12 => frame.sampling == Sampling::Quarter,
            _ => false,
        };
    let is_nearest = keeps_depth && frame.depth == 12;
    let (depth, drop) = if keeps_depth { (frame.depth, 0) } else { (8, frame.depth - 8) };
    let widen = |y: u32| match depth {
        8 => y * 0x101,
        10 => y << 6 | y >> 4,
        _ => y << 4 | y >> 8,
    };
    let mut rgb = Vec::with_capacity(3 * frame.planes[0].samples.len());
    let mut rows = [Vec::new(), Vec::new()];
    for y in 0..frame.planes[0].height {
        let luma = frame.planes[0].row(y);
        if frame.sampling == Sampling::Mono {
            for &sample in luma {
                let value = (weights.luma(widen(u32::from(sample) >> drop)) >> 6).clamp(0, 255) as u8;
                rgb.extend([value; 3]);
            }
            continue;
        }
        for (row, plane) in rows.iter_mut().zip(&frame.planes[1..]) {
            upsample(plane, frame.sampling, drop, is_nearest, y, frame.planes[0].height, luma.len(), row);
        }
        let chroma = |sample: u16| (i32::from(sample) >> (depth - 8)).min(255);
        for ((&sample, &u), &v) in luma.iter().zip(&rows[0]).zip(&rows[1]) {
            rgb.extend(weights.rgb(widen(u32::from(sample) >> drop), chroma(u), chroma(v)));
        }
    }
    rgb
}

/// Computes a chroma sample for each luma sample of row `y`. The stored samples are shifted right by `drop` bits, and
/// then interpolated linearly, horizontally and vertically, with weights 3:1 for the two nearest samples. At the edges,
/// or if `is_nearest`, only the nearest sample counts.
#[allow(clippy::too_many_arguments)]
fn upsample(
    plane: &Plane,
    sampling: Sampling,
    drop: u32,
    is_nearest: bool,
    y: usize,
    height: usize,
    width: usize,
    out: &mut Vec<u16>,
) {
    out.clear();
    let (across, down) = sampling.shifts();
    let near = plane.row(y >> down);
    if across == 0 || is_nearest {
        out.extend((0..width).map(|x| near[x >> across] >> drop));
        return;
    }
    let is_edge = down == 0 || y == 0 || y == height - 1 && height.is_multiple_of(2);
    let far = if is_edge { near } else { plane.row(if y % 2 == 1 { y / 2 + 1 } else { y / 2 - 1 }) };
    let sample = |row: &[u16], x: usize| u32::from(row[x] >> drop);
    out.extend((0..width).map(|x| {
        let at = x / 2;
        if x == 0 || x == width - 1 {
            let (near, far) = (sample(near, at), sample(far, at));
            return if is_edge { near as u16 } else { ((3 * near + far + 2) >> 2) as u16 };
        }
        let other = if x % 2 == 1 { at + 1 } else { at - 1 };
        let (near, far) = (3 * sample(near, at) + sample(near, other), 3 * sample(far, at) + sample(far, other));
        if is_edge { ((near + 2) >> 2) as u16 } else { ((3 * near + far + 8) >> 4) as u16 }
    }));
}

/// The conversion from YCbCr to RGB that the matrix coefficients of ITU-T H.273 select.
enum Mix {
    Identity,
    YCgCo,
    /// A matrix that is given by the weights of red and blue in luma.
    Luma(f32, f32),
}

impl Mix {
    fn new(colors: ColorCodes) -> Result<Self, String> {
        let luma = |code| match code {
            1 => Some((0.2126, 0.0722)),
            4 => Some((0.30, 0.11)),
            5 | 6 => Some((0.299, 0.114)),
            7 => Some((0.212, 0.087)),
            9 => Some((0.2627, 0.0593)),
            _ => None,
        };
        match colors.matrix {
            0 => Ok(Self::Identity),
            8 => Ok(Self::YCgCo),
            2 => Ok(Self::Luma(0.299, 0.114)),
            12 => {
                let (red, blue) = from_primaries(colors.primaries);
                Ok(Self::Luma(red, blue))
            }
            matrix => {
                let (red, blue) = luma(matrix).ok_or_else(|| format!("it has the matrix coefficients {matrix}"))?;
                Ok(Self::Luma(red, blue))
            }
        }
    }
}

/// Computes the weights of red and blue in luma from the colour primaries, by equations 32 to 37 of ITU-T H.273.
fn from_primaries(code: u16) -> (f32, f32) {
    let [rx, ry, gx, gy, bx, by, wx, wy] = match code {
        4 => [0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316],
        5 => [0.64, 0.33, 0.29, 0.60, 0.15, 0.06, 0.3127, 0.3290],
        6 | 7 => [0.630, 0.340, 0.310, 0.595, 0.155, 0.070, 0.3127, 0.3290],
        8 => [0.681, 0.319, 0.243, 0.692, 0.145, 0.049, 0.310, 0.316],
        9 => [0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290],
        10 => [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.3333, 0.3333],
        11 => [0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351],
        12 => [0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290],
        22 => [0.630, 0.340, 0.295, 0.605, 0.155, 0.077, 0.3127, 0.3290],
        _ => [0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290_f32],
    };
    let (rz, gz, bz, wz) = (1.0 - (rx + ry), 1.0 - (gx + gy), 1.0 - (bx + by), 1.0 - (wx + wy));
    let below = wy * (rx * (gy * bz - by * gz) + gx * (by * rz - ry * bz) + bx * (ry * gz - gy * rz));
    let red = ry * (wx * (gy * bz - by * gz) + wy * (bx * gz - gx * bz) + wz * (gx * by - bx * gy)) / below;
    let blue = by * (wx * (ry * gz - gy * rz) + wy * (gx * rz - rx * gz) + wz * (rx * gy - gx * ry)) / below;
    (red, blue)
}

/// Converts a frame to RGB in single precision, like libavif, for colours that libyuv has no routine for.
fn float(frame: &Frame, colors: ColorCodes) -> Result<Vec<u8>, String> {
    let mix = if frame.sampling == Sampling::Mono { Mix::Identity } else { Mix::new(colors)? };
    let max = (1_u32 << frame.depth) - 1;
    let shift = frame.depth - 8;
    let (luma_bias, luma_range, chroma_range) =
        if colors.is_full_range { (0, max, max) } else { (16 << shift, 219 << shift, 224 << shift) };
    let unit = |sample: u16, bias: u32, range: u32| (f32::from(sample).min(max as f32) - bias as f32) / range as f32;
    let luma = |sample| unit(sample, luma_bias, luma_range);
    let chroma = |sample| match mix {
        Mix::Identity => luma(sample),
        _ => unit(sample, 1 << (frame.depth - 1), chroma_range),
    };
    let byte = |value: f32| (0.5 + value.clamp(0.0, 1.0) * 255.0) as u8;
    let (width, height) = (frame.planes[0].width, frame.planes[0].height);
    let mut rgb = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            let level = luma(frame.planes[0].row(y)[x]);
            if frame.sampling == Sampling::Mono {
                rgb.extend([byte(level); 3]);
                continue;
            }
            let [u, v] = [1, 2].map(|at| filtered(&frame.planes[at], frame.sampling, (x, y), (width, height), &chroma));
            let color = match mix {
                Mix::Identity => [v, level, u],
                Mix::YCgCo => [level - u + v, level + u, level - u - v],
                Mix::Luma(red, blue) => {
                    let green = 1.0 - red - blue;
                    let mixed = 2.0 * ((red * (1.0 - red) * v) + (blue * (1.0 - blue) * u));
                    [level + (2.0 * (1.0 - red)) * v, level - mixed / green, level + (2.0 * (1.0 - blue)) * u]
                }
            };
            rgb.extend(color.map(byte));
        }
    }
    Ok(rgb)
}

/// Interpolates chroma bilinearly at the luma sample `(x, y)`, with weights 9/16, 3/16, 3/16 and 1/16.
fn filtered(
    plane: &Plane,
    sampling: Sampling,
    (x, y): (usize, usize),
    (width, height): (usize, usize),
    unit: &impl Fn(u16) -> f32,
) -> f32 {
    let (across, down) = sampling.shifts();
    let (column, row) = (x >> across, y >> down);
    let at = |column: usize, row: usize| unit(plane.row(row)[column]);
    if across == 0 {
        return at(column, row);
    }
    let step = |at: usize, here: usize, length: usize| match at {
        0 => here,
        at if at == length - 1 && at % 2 == 1 => here,
        at if at % 2 == 1 => here + 1,
        _ => here - 1,
    };
    let other_column = step(x, column, width);
    let other_row = if down == 0 { row } else { step(y, row, height) };
    at(column, row) * (9.0 / 16.0)
        + at(other_column, row) * (3.0 / 16.0)
        + at(column, other_row) * (3.0 / 16.0)
        + at(other_column, other_row) * (1.0 / 16.0)
}

/// Returns whether alpha of more than 8 bits is truncated to 8 bits instead of rounded. libyuv truncates alpha if one
/// routine converts colours and alpha together.
pub(super) fn truncates_alpha(frame: &Frame, colors: ColorCodes) -> bool {
    let has_routine = match frame.sampling {
        Sampling::Mono => false,
        Sampling::Quarter => frame.depth != 12,
        Sampling::Half | Sampling::Full => true,
    };
    has_routine && Weights::new(colors, false).is_some()
}

/// Converts the luma of an alpha frame to 8-bit alpha, `[height, width]`. The values are truncated if `is_truncated`,
/// otherwise rounded.
pub(super) fn to_alpha(frame: &Frame, colors: ColorCodes, is_truncated: bool) -> Vec<u8> {
    let max = (1_u32 << frame.depth) - 1;
    let shift = frame.depth - 8;
    let full = |sample: u16| {
        let sample = u32::from(sample).min(max);
        if colors.is_full_range {
            sample
        } else {
            let (low, range) = (16 << shift, 219 << shift);
            ((sample.saturating_sub(low) * max + range / 2) / range).min(max)
        }
    };
    let byte = |value: u32| {
        if is_truncated || max == 255 {
            (value >> shift) as u8
        } else {
            (0.5 + value as f32 / max as f32 * 255.0) as u8
        }
    };
    frame.planes[0].samples.iter().map(|&sample| byte(full(sample))).collect()
}

/// Divides premultiplied colours by their alpha, in fixed point.
///
/// Source: `ARGBUnattenuateRow` and `fixed_invtbl8` of libyuv.
pub(super) fn unpremultiply(rgba: &mut [u8]) {
    for pixel in rgba.as_chunks_mut::<4>().0 {
        let inverse = match u32::from(pixel[3]) {
            0 => 0,
            1 => 0xffff,
            255 => 0x100,
            alpha => 0x1_0000 / alpha,
        };
        for value in &mut pixel[..3] {
            // libyuv's packing instruction treats values of more than 15 bits as negative and replaces them by 0.
            *value = match (u32::from(*value) * 0x101 * inverse) >> 16 {
                value @ 0..=0x7fff => value.min(255) as u8,
                _ => 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_truncated_or_rounded_like_libavif() {
        let cuts = |sampling, depth, matrix| {
            let colors = ColorCodes { primaries: 1, matrix, is_full_range: true };
            truncates_alpha(&Frame { width: 1, height: 1, depth, sampling, planes: Vec::new(), colors }, colors)
        };
        assert!(cuts(Sampling::Full, 10, 1) && cuts(Sampling::Quarter, 10, 6) && cuts(Sampling::Half, 12, 9));
        assert!(!cuts(Sampling::Mono, 10, 1) && !cuts(Sampling::Quarter, 12, 1) && !cuts(Sampling::Full, 10, 0));

        let colors = ColorCodes { primaries: 1, matrix: 1, is_full_range: true };
        let plane = Plane { width: 3, height: 1, samples: vec![0, 7, 1023] };
        let frame = Frame { width: 3, height: 1, depth: 10, sampling: Sampling::Mono, planes: vec![plane], colors };
        assert_eq!(to_alpha(&frame, colors, true), [0, 1, 255]);
        assert_eq!(to_alpha(&frame, colors, false), [0, 2, 255]);
    }
}
