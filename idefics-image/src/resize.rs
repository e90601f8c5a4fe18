//! Resizing with exactly the values that Pillow computes.
//!
//! Two separable passes over 8-bit pixels, horizontal first as in every Pillow up to 12, with the intermediate rounded
//! to 8 bits. Weights are computed in f64, normalized, and rounded to 22-bit fixed point; sums are 32-bit integers. A
//! pass along an unchanged side is left out.
//!
//! The fast_image_resize crate does not do: its 16-bit weights give other values than Pillow 12.3 for 4 to 24 % of the
//! samples of three photographs, by up to 1 level (bilinear), 6 (bicubic) and 12 (lanczos) of 255.
//!
//! Source: `ImagingResample` of Pillow 12 (`Resample.c`), and `ImagingScaleAffine` (`Geometry.c`) for nearest.

use std::f64::consts::PI;
use std::ops::Range;

use rayon::prelude::*;

use crate::RgbImage;
use crate::kernels::{self, PADDING, PRECISION_BITS, ROWS, Taps};
use crate::rgb::RgbView;

/// How new pixels are made of old ones; the discriminants are Pillow's `resample` numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Filter {
    /// The one pixel under the center of the new one.
    Nearest = 0,
    /// Windowed sinc over 3 pixels each side (Idefics3, SmolVLM).
    Lanczos = 1,
    /// Triangle over 1 pixel each side (Idefics2).
    Bilinear = 2,
    /// Cubic over 2 pixels each side, `a = -0.5` (Idefics).
    Bicubic = 3,
    /// The mean of the pixels that the new one covers.
    Box = 4,
    /// Hamming-windowed sinc over 1 pixel each side.
    Hamming = 5,
}

impl Filter {
    /// Every filter, in the order of Pillow's numbers.
    pub const ALL: [Self; 6] = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];

    /// The filter that a `resample` number of a preprocessor configuration means, 0 to 5.
    pub fn from_pillow(resample: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| *filter as u64 == resample)
    }

    /// Half the width of the kernel, in source pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel at distance `x`, in source pixels at scale 1.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 1.0,
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Box => 0.0,
            Self::Hamming => hamming(x.abs()),
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn hamming(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else if x < 1.0 {
        let x = x * PI;
        x.sin() / x * (f64::from(0.54_f32) + f64::from(0.46_f32) * x.cos())
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// Resizes to exactly `width` × `height` pixels, bit for bit as Pillow's `Image.resize` does.
///
/// # Panics
/// If a side is 0.
///
/// Source: `Image.resize` of Pillow 12, without `box` and `reducing_gap`.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    resize_view(image.view(), width, height, filter)
}

/// [`resize`] of a rectangle.
///
/// # Panics
/// If a side is 0.
pub fn resize_view(source: RgbView<'_>, width: u32, height: u32, filter: Filter) -> RgbImage {
    assert!(width > 0 && height > 0, "an image has sides of at least one pixel");
    let (out_width, out_height) = (width as usize, height as usize);
    if (source.width, source.height) == (out_width, out_height) {
        return source.to_image();
    }
    let data = if filter == Filter::Nearest {
        nearest(source, out_width, out_height)
    } else if source.height == out_height {
        narrow(source, 0..source.height, &axis_taps(source.width, out_width, filter))
    } else {
        let taps = axis_taps(source.height, out_height, filter);
        let rows = taps.inputs();
        if source.width == out_width {
            shorten(|y| source.row(y), 3 * out_width, &taps)
        } else {
            // Only the rows that the second pass reads.
            let first_row = rows.start;
            let narrowed = narrow(source, rows, &axis_taps(source.width, out_width, filter));
            let stride = 3 * out_width;
            shorten(|y| &narrowed[(y - first_row) * stride..][..stride], stride, &taps)
        }
    };
    RgbImage::new(width, height, data).expect("the passes fill every pixel")
}

/// The weights of one axis.
fn axis_taps(in_size: usize, out_size: usize, filter: Filter) -> Taps {
    let scale = in_size as f64 / out_size as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;

    let mut taps = Taps::default();
    let mut exact = Vec::new();
    for position in 0..out_size {
        let center = (position as f64 + 0.5) * scale;
        // Casts truncate toward zero and stop at 0, as the source's do.
        let start = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(in_size);
        exact.clear();
        exact.extend((start..end).map(|input| filter.weight((input as f64 - center + 0.5) * inverse)));
        let sum: f64 = exact.iter().sum();
        let fixed_point = |&weight: &f64| {
            let weight = if sum == 0.0 { weight } else { weight / sum };
            (weight * f64::from(1 << PRECISION_BITS) + 0.5_f64.copysign(weight)) as i32
        };
        taps.push(start, exact.iter().map(fixed_point));
    }
    taps
}

/// Resizes the given rows along x; returns `[rows, taps.len(), 3]`.
fn narrow(source: RgbView<'_>, rows: Range<usize>, taps: &Taps) -> Vec<u8> {
    let length = 3 * source.width + PADDING;
    let out_stride = 3 * taps.len();
    let mut out = vec![0; rows.len() * out_stride];
    out.par_chunks_mut(ROWS * out_stride).with_min_len(2).enumerate().for_each(|(group, out_rows)| {
        let first = rows.start + ROWS * group;
        let group = first..first + out_rows.len() / out_stride;
        // Rows at the end of the picture are copied, so that the loop may read beyond them.
        let copies: Vec<Vec<u8>> = group
            .clone()
            .filter(|&y| source.rest(y).len() < length)
            .map(|y| [source.row(y), &[0; PADDING]].concat())
            .collect();
        let first_copy = group.end - copies.len();
        let in_rows: Vec<&[u8]> =
            group.map(|y| if y < first_copy { source.rest(y) } else { &copies[y - first_copy] }).collect();
        kernels::horizontal(&in_rows, taps, out_rows);
    });
    out
}

/// Resizes along y; `row(y)` is an input row of `stride` bytes. Returns `[taps.len(), stride]`.
fn shorten<'a>(row: impl Fn(usize) -> &'a [u8] + Sync, stride: usize, taps: &Taps) -> Vec<u8> {
    let mut out = vec![0; taps.len() * stride];
    out.par_chunks_exact_mut(stride).with_min_len(8).enumerate().for_each(|(position, out_row)| {
        kernels::vertical(&row, taps, position, out_row);
    });
    out
}

fn nearest(source: RgbView<'_>, out_width: usize, out_height: usize) -> Vec<u8> {
    let columns = nearest_inputs(source.width, out_width);
    let mut out = Vec::with_capacity(3 * out_width * out_height);
    for y in nearest_inputs(source.height, out_height) {
        let row = source.row(y);
        for &x in &columns {
            out.extend_from_slice(&row[3 * x..3 * x + 3]);
        }
    }
    out
}

/// The input under the center of each output. The position is added up step by step, as the source does, because its
/// rounding shows in the last bit.
fn nearest_inputs(in_size: usize, out_size: usize) -> Vec<usize> {
    let scale = in_size as f64 / out_size as f64;
    let mut position = scale * 0.5;
    (0..out_size)
        .map(|_| {
            let input = (position as usize).min(in_size - 1);
            position += scale;
            input
        })
        .collect()
}
