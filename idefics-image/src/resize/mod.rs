//! Resizes images to exactly the values that Pillow computes.
//!
//! Resizing takes two passes over 8-bit pixels, one for each axis. The result of the first pass is rounded to 8 bits.
//! The horizontal pass comes first, except for very tall images. Weights are computed in f64, normalised, and rounded
//! to 22-bit fixed point; sums are 32-bit integers. There is no pass along an axis whose size does not change.
//!
//! [`axis_taps`] computes the weights of an axis. [`stream`] runs the passes over the rows as they arrive. The inner
//! loops are in [`plain`] and, for CPUs with vector instructions, in [`x86`]. [`block`] describes the layout of rows
//! between the passes.
//!
//! The fast_image_resize crate is not exact enough: its 16-bit weights give values that differ from Pillow 12.3 in 4 to
//! 24 % of the samples of three photographs, by up to 1 (bilinear), 6 (bicubic) and 12 (lanczos) of 255 levels.
//!
//! Source: `ImagingResample` of Pillow 12 (`Resample.c`), and `ImagingScaleAffine` (`Geometry.c`) for nearest.

mod block;
mod plain;
mod stream;
mod taps;
mod target;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::f64::consts::PI;
use std::ops::Range;

use image::metadata::Orientation;

use crate::RgbImage;
use crate::rgb::RgbView;
pub(crate) use stream::{RowResizer, zeroed};
use taps::{PRECISION_BITS, Taps};
pub use target::{Crop, ResizeTarget};

/// Number of rows that are interleaved between the two passes, so that the bytes of a column are adjacent.
const LANES: usize = 4;

/// Number of rows that the horizontal loops process at a time.
const ROWS: usize = 2 * LANES;

/// The resampling filter. The discriminants are Pillow's `resample` numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Filter {
    /// The input pixel at the centre of the output pixel.
    Nearest = 0,
    /// Windowed sinc over 3 pixels on each side (Idefics3, SmolVLM).
    Lanczos = 1,
    /// Triangle over 1 pixel on each side (Idefics2).
    Bilinear = 2,
    /// Cubic over 2 pixels on each side, with `a = -0.5` (Idefics).
    Bicubic = 3,
    /// The mean of the input pixels that the output pixel covers.
    Box = 4,
    /// Hamming-windowed sinc over 1 pixel on each side.
    Hamming = 5,
}

impl Filter {
    /// Every filter, in the order of Pillow's numbers.
    pub const ALL: [Self; 6] = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];

    /// Returns the filter with a `resample` number from a preprocessor configuration, 0 to 5, or `None` for other
    /// numbers.
    pub fn from_pillow(resample: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| *filter as u64 == resample)
    }

    /// Returns half the width of the kernel, in source pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Returns the value of the kernel at distance `x`, in source pixels at scale 1.
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

/// Resizes to exactly `width` × `height` pixels. The result is bitwise equal to that of Pillow's `Image.resize`.
///
/// # Panics
/// If a side is 0.
///
/// Source: `Image.resize` of Pillow 12, without `box` and `reducing_gap`.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    resize_view(image.view(), width, height, filter)
}

/// Resizes a rectangle of an image, like [`resize`].
///
/// # Panics
/// If a side is 0, or there is not enough memory for the output.
pub fn resize_view(source: RgbView<'_>, width: u32, height: u32, filter: Filter) -> RgbImage {
    assert!(width > 0 && height > 0, "the width and height of the resized image must be at least 1");
    let target = ResizeTarget::of_view(source, width, height, filter);
    let size = (source.width as u32, source.height as u32); // width and height of an image are u32
    let mut rows = RowResizer::new(size, Orientation::NoTransforms, target).expect("not enough memory to resize");
    rows.push(source);
    rows.finish()
}

/// Returns the maximum number of inputs that an output reads.
fn window(in_size: usize, out_size: usize, filter: Filter) -> usize {
    let scale = (in_size as f64 / out_size as f64).max(1.0);
    ((2.0 * filter.support() * scale) as usize).saturating_add(2).min(in_size)
}

/// Computes the weights of one axis.
fn axis_taps(in_size: usize, out_size: usize, filter: Filter) -> Taps {
    if filter == Filter::Nearest {
        return nearest_taps(in_size, out_size);
    }
    let scale = in_size as f64 / out_size as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;

    let mut taps = Taps::default();
    let mut exact = Vec::new();
    for position in 0..out_size {
        let center = (position as f64 + 0.5) * scale;
        // The casts truncate toward zero, and negative values become 0, as in Pillow.
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

/// The horizontal loop and its weights.
#[derive(Debug)]
struct Columns {
    taps: Taps,
    #[cfg(target_arch = "x86_64")]
    vector: Option<x86::Columns>,
}

impl Columns {
    fn new(taps: Taps) -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            vector: x86::Columns::new(&taps),
            taps,
        }
    }

    /// Resizes rows along x, and writes them to an interleaved block (see [`mod@block`]). Each input row is
    /// `[width, 3]`. Rows that are not in `used` may be skipped.
    fn horizontal(&self, rows: [&[u8]; ROWS], used: Range<usize>, block: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(vector) = &self.vector {
            return vector.horizontal(rows, used, block);
        }
        plain::horizontal(rows, used, &self.taps, block);
    }
}

/// The vertical loop and its weights.
#[derive(Debug)]
struct Rows {
    taps: Taps,
    #[cfg(target_arch = "x86_64")]
    vector: Option<x86::Rows>,
}

impl Rows {
    /// Chooses the loop for rows of at least `row_bytes` bytes.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "the plain loop takes any length"))]
    fn new(taps: Taps, row_bytes: usize) -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            vector: x86::Rows::new(&taps, row_bytes),
            taps,
        }
    }

    /// Computes the output row at `position`. `group(i)` returns [`LANES`] interleaved input rows, beginning with row
    /// `LANES * i`.
    fn vertical<'a>(&self, group: impl Fn(usize) -> &'a [u8], position: usize, out: &mut [u8]) {
        let inputs = self.taps.inputs(position);
        let groups: Vec<&[u8]> = (inputs.start / LANES..inputs.end.div_ceil(LANES)).map(group).collect();
        #[cfg(target_arch = "x86_64")]
        if let Some(vector) = &self.vector {
            return vector.vertical(&groups, position, out);
        }
        plain::vertical(&groups, &self.taps, position, out);
    }
}

/// Returns the weights of the nearest filter: a weight of 1 for the input at the centre of each output. The position is
/// accumulated step by step, as in Pillow, because the rounding errors of this sum decide ties.
fn nearest_taps(in_size: usize, out_size: usize) -> Taps {
    let scale = in_size as f64 / out_size as f64;
    let mut position = scale * 0.5;
    let mut taps = Taps::default();
    for _ in 0..out_size {
        taps.push((position as usize).min(in_size - 1), [1 << PRECISION_BITS].into_iter());
        position += scale;
    }
    taps
}

#[cfg(test)]
mod tests {
    use super::taps::tests::{one_output, ramp_taps, values};
    use super::*;

    /// Compares the horizontal vector loops that this CPU supports with the plain loop.
    #[cfg(target_arch = "x86_64")]
    fn compare(taps: &Taps, source: RgbView<'_>) {
        let rows = std::array::from_fn(|y| source.row(y));
        let count = taps.len();
        let mut plain = vec![0; 3 * ROWS * count];
        plain::horizontal(rows, 0..ROWS, taps, &mut plain);
        for vector in x86::Columns::every(taps) {
            let mut fast = vec![0; plain.len()];
            vector.horizontal(rows, 0..ROWS, &mut fast);
            assert!(fast == plain, "{count} outputs of {} pixels", source.width());
            for used in [0..LANES, LANES..ROWS] {
                let mut half = vec![0; plain.len()];
                vector.horizontal(rows, used.clone(), &mut half);
                let bytes = 3 * taps.len() * used.start..3 * taps.len() * used.end;
                assert!(half[bytes.clone()] == plain[bytes], "{used:?} of {count} outputs");
            }
        }
    }

    /// Compares the vertical vector loops that this CPU supports with the plain loop. `source` consists of interleaved
    /// groups of rows of `width` bytes.
    #[cfg(target_arch = "x86_64")]
    fn compare_down(taps: &Taps, source: &[u8], width: usize) {
        let groups: Vec<&[u8]> = source.chunks_exact(LANES * width).collect();
        for position in 0..taps.len() {
            let inputs = taps.inputs(position);
            let groups = &groups[inputs.start / LANES..inputs.end.div_ceil(LANES)];
            let mut plain = vec![1; width];
            plain::vertical(groups, taps, position, &mut plain);
            for vector in x86::Rows::every(taps, width) {
                let mut fast = vec![0; width];
                vector.vertical(groups, position, &mut fast);
                assert!(fast == plain, "{} groups of {width}", groups.len());
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vector_loops_equal_plain_loops() {
        for count in (1..20).chain([63, 64, 65, 127, 128, 129, 200, 300, 1000]) {
            let taps = ramp_taps((0..50).step_by(3), count);
            // The last output reads the last pixel.
            let inputs = 48 + count as usize;
            let data = values(3 * inputs * ROWS);
            let picture = RgbImage::new(inputs as u32, ROWS as u32, data).expect("three bytes per pixel");
            compare(&taps, picture.view());
            for width in [31, 32, 33, 63, 64, 65, 100, 200] {
                compare_down(&taps, &values(width * inputs.next_multiple_of(LANES)), width);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(500))]

        #[test]
        fn vector_loops_equal_plain_loops_for_any_size(
            in_size in 1..2500_usize,
            out_size in 1..600_usize,
            filter in proptest::sample::select(Filter::ALL.to_vec()),
            seed in 0..1000_usize,
            width in 1..300_usize,
        ) {
            let taps = axis_taps(in_size, out_size, filter);
            let data = &values(3 * in_size * ROWS + seed)[seed..];
            let picture = RgbImage::new(in_size as u32, ROWS as u32, data.to_vec()).expect("three bytes per pixel");
            compare(&taps, picture.view());
            let taps = axis_taps(in_size.min(200), out_size.min(20), filter);
            compare_down(&taps, &values(seed + width * in_size.min(200).next_multiple_of(LANES))[seed..], width);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn extreme_pixels_and_weights_do_not_overflow() {
        let one = 1 << PRECISION_BITS;
        for weights in [
            vec![one],
            vec![one / 2; 2],
            vec![one + one / 4, -one / 4],
            vec![2 * one - one / 128, one / 128 - one],
            vec![-one / 8, one, one / 8 + 1],
            vec![32_768; 127],
            vec![32_768; 170],
        ] {
            let taps = one_output(&weights);
            for value in [0, 1, 254, 255] {
                let (width, data) = (weights.len(), vec![value; 3 * weights.len() * ROWS]);
                let picture = RgbImage::new(width as u32, ROWS as u32, data).expect("three bytes per pixel");
                compare(&taps, picture.view());
                compare_down(&taps, &vec![value; 80 * weights.len().next_multiple_of(LANES)], 80);
            }
        }
    }
}
