//! Converts the components of the file to RGB.
//!
//! Source: `jdapimin.c` (the colour space of a file) and `jdcolor.c` of libjpeg-turbo 3, `cmyk2rgb` of Pillow 12.

use super::frame::{Component, Frame};
use super::markers::Markers;
use super::upsample::Upsampling;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;

/// The colour space of the components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    /// No conversion: the components of a pixel are interleaved. Subsampled components are repeated, not
    /// interpolated.
    Plain {
        components: usize,
    },
    Grey,
    Rgb,
    YCbCr,
    /// CMYK that is stored inverted (255 is no ink), as Adobe's programs do. Pillow treats every file with four
    /// components as inverted.
    Cmyk,
    /// Inverted CMYK with the first three inks stored as YCbCr.
    Ycck,
}

impl Color {
    /// Determines the colour space like libjpeg: a JFIF segment means YCbCr, an Adobe segment declares the colour
    /// transform, and without either the component ids may be `RGB`.
    pub(super) fn detect(markers: &Markers<'_>, components: &[Component]) -> Self {
        match (components, markers.adobe) {
            ([_], _) => Self::Grey,
            ([_, _, _], _) if markers.has_jfif => Self::YCbCr,
            ([_, _, _], Some(0)) => Self::Rgb,
            ([_, _, _], Some(_)) => Self::YCbCr,
            ([r, g, b], None) if [r.id, g.id, b.id] == *b"RGB" => Self::Rgb,
            ([_, _, _], None) => Self::YCbCr,
            (_, None | Some(0)) => Self::Cmyk,
            (_, Some(_)) => Self::Ycck,
        }
    }

    /// Returns the number of bytes per converted pixel.
    pub(super) fn pixel_bytes(self) -> usize {
        match self {
            Self::Plain { components } => components,
            _ => 3,
        }
    }

    /// Returns how a component is upsampled to the size of the image. [`Self::Plain`] repeats samples; all other colour
    /// spaces interpolate them.
    pub(super) fn upsampling(self, frame: &Frame, component: &Component) -> Upsampling {
        match self {
            Self::Plain { .. } => Upsampling::repeated(frame, component),
            _ => Upsampling::choose(frame, component),
        }
    }

    /// Converts one row of the image. `rows` contains one row per component. Each of these rows is at least as long as
    /// the width of the image, rounded up to a multiple of 16.
    pub(super) fn convert(self, rows: &[&[u8]], out: &mut [u8]) {
        match (self, rows) {
            (Self::Plain { components }, _) => {
                for (band, row) in rows.iter().enumerate().take(components) {
                    for (pixel, &value) in out.chunks_exact_mut(components).zip(*row) {
                        pixel[band] = value;
                    }
                }
            }
            (Self::Grey, [grey, ..]) => {
                for (pixel, &value) in out.chunks_exact_mut(3).zip(*grey) {
                    pixel.fill(value);
                }
            }
            (Self::Rgb, [red, green, blue, ..]) => {
                for (((pixel, &red), &green), &blue) in out.chunks_exact_mut(3).zip(*red).zip(*green).zip(*blue) {
                    pixel.copy_from_slice(&[red, green, blue]);
                }
            }
            (Self::YCbCr, &[y, cb, cr, ..]) => ycbcr(y, cb, cr, out),
            (Self::Cmyk, [cyan, magenta, yellow, key, ..]) => {
                let inks = cyan.iter().zip(*magenta).zip(*yellow).zip(*key);
                for (pixel, (((&cyan, &magenta), &yellow), &key)) in out.chunks_exact_mut(3).zip(inks) {
                    pixel.copy_from_slice(&[cyan, magenta, yellow].map(|ink| apply_ink(255 - ink, key)));
                }
            }
            (Self::Ycck, &[y, cb, cr, key, ..]) => {
                ycbcr(y, cb, cr, out);
                for (pixel, &key) in out.chunks_exact_mut(3).zip(key) {
                    for value in pixel {
                        *value = apply_ink(*value, key);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Computes an RGB channel from CMYK: `white` (inverted black) reduced by `ink`.
fn apply_ink(ink: u8, white: u8) -> u8 {
    let product = u32::from(ink) * u32::from(white) + 128;
    white.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

// Conversion factors in units of 1/65536. To make a factor fit into 16 bits, a whole number is added to it or
// subtracted from it. The conversion compensates for this number separately.
const CR_RED: i32 = 91_881 - 65_536;
const CR_GREEN: i32 = 65_536 - 46_802;
const CB_GREEN: i32 = -22_554;
const CB_BLUE: i32 = 116_130 - 2 * 65_536;

fn ycbcr(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.is_allowed() && is_x86_feature_detected!("avx2") {
        return avx2::ycbcr(y, cb, cr, out);
    }
    ycbcr_plain(y, cb, cr, out);
}

fn ycbcr_plain(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
        let red = y + cr + ((CR_RED * cr + HALF) >> 16);
        let green = y - cr + ((CB_GREEN * cb + CR_GREEN * cr + HALF) >> 16);
        let blue = y + 2 * cb + ((CB_BLUE * cb + HALF) >> 16);
        pixel.copy_from_slice(&[red, green, blue].map(|value| value.clamp(0, 255) as u8));
    }
}

/// Converts sixteen pixels at a time with AVX2.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "functions that need AVX2, and loads and stores through pointers")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{CB_BLUE, CB_GREEN, CR_GREEN, CR_RED};

    const PIXELS: usize = 16;

    /// Shuffle masks that interleave the channels. Sixteen RGB pixels have 48 bytes, which are written in three parts.
    /// There is a mask for each part and channel: for each byte of the part, the index of the channel's value, or -1 if
    /// the byte belongs to another channel.
    const PLACES: [[[i8; PIXELS]; 3]; 3] = {
        let mut places = [[[-1; PIXELS]; 3]; 3];
        let mut at = 0;
        while at < 3 * PIXELS {
            places[at / PIXELS][at % 3][at % PIXELS] = (at / 3) as i8;
            at += 1;
        }
        places
    };

    /// Does the same as [`super::ycbcr_plain`] with vector instructions.
    pub(super) fn ycbcr(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the assertion above checks that the CPU has AVX2.
        unsafe { compiled(y, cb, cr, out) }
    }

    #[target_feature(enable = "avx2")]
    fn compiled(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
        let places = PLACES.map(|third| third.map(|places| load(&places.map(|place| place as u8))));
        let chunks = y.as_chunks::<PIXELS>().0.iter().zip(cb.as_chunks::<PIXELS>().0).zip(cr.as_chunks::<PIXELS>().0);
        for (((y, cb), cr), out) in chunks.zip(out.chunks_mut(3 * PIXELS)) {
            let pixels = pixels(y, cb, cr);
            let mut rgb = [0_u8; 3 * PIXELS];
            let target = match out.first_chunk_mut() {
                Some(whole) => whole,
                None => &mut rgb,
            };
            let (thirds, _) = target.as_chunks_mut::<PIXELS>();
            for (third, places) in thirds.iter_mut().zip(places) {
                let [red, green, blue] = [0, 1, 2].map(|channel| _mm_shuffle_epi8(pixels[channel], places[channel]));
                // SAFETY: `third` has 16 bytes, and the store may be unaligned.
                unsafe { _mm_storeu_si128(third.as_mut_ptr().cast(), _mm_or_si128(_mm_or_si128(red, green), blue)) }
            }
            if out.len() < 3 * PIXELS {
                out.copy_from_slice(&rgb[..out.len()]);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; PIXELS]) -> __m128i {
        // SAFETY: `bytes` has 16 bytes, and the load may be unaligned.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    /// Returns the red, green and blue values of 16 pixels.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pixels(y: &[u8; PIXELS], cb: &[u8; PIXELS], cr: &[u8; PIXELS]) -> [__m128i; 3] {
        let wide = |bytes: &[u8; PIXELS]| _mm256_cvtepu8_epi16(load(bytes));
        let middle = _mm256_set1_epi16(128);
        let (y, cb, cr) = (wide(y), _mm256_sub_epi16(wide(cb), middle), _mm256_sub_epi16(wide(cr), middle));
        let (cb2, cr2) = (_mm256_add_epi16(cb, cb), _mm256_add_epi16(cr, cr));
        // The upper half of the doubled product has one bit too many. Add 1 for rounding, then shift the bit out.
        let part = |doubled: __m256i, factor: i32| {
            let product = _mm256_mulhi_epi16(doubled, _mm256_set1_epi16(factor as i16));
            _mm256_srai_epi16::<1>(_mm256_add_epi16(product, _mm256_set1_epi16(1)))
        };
        let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), part(cr2, CR_RED));
        let blue = _mm256_add_epi16(_mm256_add_epi16(y, cb2), part(cb2, CB_BLUE));
        let factors = _mm256_set1_epi32(CR_GREEN << 16 | (CB_GREEN & 0xffff));
        let sum = |pairs: __m256i| {
            let sum = _mm256_add_epi32(_mm256_madd_epi16(pairs, factors), _mm256_set1_epi32(1 << 15));
            _mm256_srai_epi32::<16>(sum)
        };
        let both = _mm256_packs_epi32(sum(_mm256_unpacklo_epi16(cb, cr)), sum(_mm256_unpackhi_epi16(cb, cr)));
        let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), both);
        [red, green, blue]
            .map(|value| _mm_packus_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectorized_ycbcr_matches_scalar() {
        let row: Vec<u8> = (0..256).map(|value| value as u8).collect();
        for y in [0, 1, 63, 127, 128, 200, 254, 255] {
            for cr in 0..=255 {
                let (y, cr) = (vec![y; 256], vec![cr; 256]);
                let (mut fast, mut plain) = (vec![0; 3 * 256], vec![1; 3 * 256]);
                ycbcr(&y, &row, &cr, &mut fast);
                ycbcr_plain(&y, &row, &cr, &mut plain);
                assert_eq!(fast, plain);
            }
        }
    }

    #[test]
    fn ycbcr_handles_every_row_length() {
        let row: Vec<u8> = (0..64).map(|value| value * 3).collect();
        for width in 1..=64 {
            let (mut fast, mut plain) = (vec![0; 3 * width], vec![1; 3 * width]);
            ycbcr(&row, &row, &row, &mut fast);
            ycbcr_plain(&row, &row, &row, &mut plain);
            assert_eq!(fast, plain);
        }
    }
}
