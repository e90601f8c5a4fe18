//! A decoded image in one of Pillow's pixel modes, and its conversion to RGB.

use std::borrow::Cow;
use std::ops::Range;

use image::metadata::Orientation;

use crate::Alpha;

const WHITE: [u8; 3] = [255; 3];

/// A whole image as stored in the file, with its colour keys and orientation.
#[derive(Debug)]
pub(crate) struct Raster {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Pixels,
    pub(crate) keys: Keys,
    pub(crate) orientation: Orientation,
}

/// Pixel data. Each comment below begins with the names of the Pillow modes that a variant holds.
#[derive(Debug)]
pub(crate) enum Pixels {
    /// `1` and `L`, as well as `I;16`, `I` and `F` after clipping to 0..255 ([`clip`]): `[height, width]`.
    Grey(Vec<u8>),
    /// `LA`: `[height, width, 2]`.
    GreyAlpha(Vec<u8>),
    /// `RGB`: `[height, width, 3]`.
    Rgb(Vec<u8>),
    /// `RGBA`: `[height, width, 4]`.
    Rgba(Vec<u8>),
    /// `CMYK`: `[height, width, 4]`; 255 is full ink.
    Cmyk(Vec<u8>),
    /// `P`: palette indices `[height, width]`.
    Indexed(Vec<u8>, Palette),
    /// `PA`: pairs of palette index and alpha, `[height, width, 2]`. The alpha of the palette is ignored.
    IndexedAlpha(Vec<u8>, Palette),
}

/// RGBA colours of 256 palette entries. Entries that the file does not define are opaque black, as in Pillow's
/// `ImagingPaletteNew`.
#[derive(Debug, Clone)]
pub(crate) struct Palette(pub(crate) Box<[[u8; 4]; 256]>);

impl Palette {
    /// Creates a palette from opaque RGB colours, starting at index 0. Colours beyond 256 are ignored.
    pub(crate) fn new(colors: impl IntoIterator<Item = [u8; 3]>) -> Self {
        let mut palette = Box::new([[0, 0, 0, 255]; 256]);
        for (entry, [red, green, blue]) in palette.iter_mut().zip(colors) {
            *entry = [red, green, blue, 255];
        }
        Self(palette)
    }

    /// Creates a palette from packed RGB bytes. An incomplete last colour is ignored.
    pub(crate) fn from_rgb(bytes: &[u8]) -> Self {
        Self::new(bytes.chunks_exact(3).map(|color| [color[0], color[1], color[2]]))
    }

    /// Returns the RGB colour of an index.
    pub(crate) fn color(&self, index: u8) -> [u8; 3] {
        let [red, green, blue, _] = self.0[usize::from(index)];
        [red, green, blue]
    }
}

/// The colour that the file declares transparent (colour key), for each alpha mode. Every pixel of that colour becomes
/// white.
///
/// The two colours can differ because Pillow's conversions treat the key differently. `over_white` is the colour that
/// `convert("RGBA")` makes transparent ([`Alpha::White`]). `dropped` is the colour that `convert("RGB")` passes on in
/// `info["transparency"]` ([`Alpha::Drop`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) over_white: Option<[u8; 3]>,
    pub(crate) dropped: Option<[u8; 3]>,
}

impl Keys {
    /// Uses `color` as the colour key of both alpha modes.
    pub(crate) fn both(color: [u8; 3]) -> Self {
        Self { over_white: Some(color), dropped: Some(color) }
    }
}

impl Raster {
    /// Creates an upright image without colour keys.
    pub(crate) fn new(width: u32, height: u32, pixels: Pixels) -> Self {
        Self { width, height, pixels, keys: Keys::default(), orientation: Orientation::NoTransforms }
    }
}

/// How transparent pixels are converted to opaque pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flattening {
    alpha: Alpha,
    /// The colour key: this colour becomes white.
    key: Option<[u8; 3]>,
}

impl Flattening {
    pub(crate) fn new(alpha: Alpha, keys: Keys) -> Self {
        let key = match alpha {
            Alpha::White => keys.over_white,
            Alpha::Drop => keys.dropped,
        };
        Self { alpha, key }
    }

    fn keyed(self, color: [u8; 3]) -> [u8; 3] {
        if self.key == Some(color) { WHITE } else { color }
    }

    fn flat(self, color: [u8; 3], opacity: u8) -> [u8; 3] {
        match self.alpha {
            Alpha::White => color.map(|value| over_white(value, opacity)),
            Alpha::Drop => color,
        }
    }
}

impl Pixels {
    /// Returns the samples, and the number of samples per pixel.
    fn samples(&self) -> (&[u8], usize) {
        match self {
            Self::Grey(data) | Self::Indexed(data, _) => (data, 1),
            Self::GreyAlpha(data) | Self::IndexedAlpha(data, _) => (data, 2),
            Self::Rgb(data) => (data, 3),
            Self::Rgba(data) | Self::Cmyk(data) => (data, 4),
        }
    }

    /// Returns the number of pixels.
    pub(crate) fn len(&self) -> usize {
        let (data, samples) = self.samples();
        data.len() / samples
    }

    /// Converts a range of pixels to 8-bit RGB, three bytes per pixel.
    ///
    /// Source: `Convert.c` of Pillow, `Image.convert` of Pillow for transparency, `convert_to_rgb` of Transformers
    /// for compositing on white.
    pub(crate) fn to_rgb(&self, pixels: Range<usize>, flattening: Flattening) -> Cow<'_, [u8]> {
        let keyed = |color| flattening.keyed(color);
        let flat = |color, opacity| flattening.flat(color, opacity);
        let (data, samples) = self.samples();
        let data = &data[pixels.start * samples..pixels.end * samples];
        Cow::Owned(match self {
            Self::Rgb(_) if flattening.key.is_none() => return Cow::Borrowed(data),
            Self::Rgb(_) => map_pixels(data, |&[red, green, blue]| keyed([red, green, blue])),
            Self::Grey(_) => {
                let table: Vec<[u8; 3]> = (0..=255).map(|value| keyed([value; 3])).collect();
                map_pixels(data, |&[value]| table[usize::from(value)])
            }
            Self::GreyAlpha(_) => map_pixels(data, |&[value, opacity]| flat([value; 3], opacity)),
            Self::Rgba(_) => map_pixels(data, |&[red, green, blue, a]| flat([red, green, blue], a)),
            Self::Cmyk(_) => map_pixels(data, |&ink| cmyk_to_rgb(ink)),
            Self::Indexed(_, palette) => {
                let table = palette.0.map(|[red, green, blue, a]| keyed(flat([red, green, blue], a)));
                map_pixels(data, |&[index]| table[usize::from(index)])
            }
            Self::IndexedAlpha(_, palette) => map_pixels(data, |&[index, a]| flat(palette.color(index), a)),
        })
    }
}

fn map_pixels<const N: usize>(data: &[u8], color: impl Fn(&[u8; N]) -> [u8; 3]) -> Vec<u8> {
    let (pixels, _) = data.as_chunks::<N>();
    let mut rgb = vec![0; 3 * pixels.len()];
    for (rgb, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *rgb = color(pixel);
    }
    rgb
}

/// Clips a 16-bit grey level to 255, like Pillow's `convert("RGB")`. The level is not scaled.
///
/// Source: `I16_RGB` and `i2rgb` in `Convert.c`.
pub(crate) fn clip(level: u16) -> u8 {
    level.min(255) as u8
}

/// Composites one channel value on white. An opaque pixel keeps its value, and a fully transparent one becomes white.
///
/// Source: `ImagingAlphaComposite` of Pillow with an opaque backdrop. Weights are fixed-point with 7 fractional bits,
/// and the division by 255 is done with shifts.
fn over_white(value: u8, alpha: u8) -> u8 {
    const PRECISION_BITS: u32 = 7;
    let weight = u32::from(alpha) << PRECISION_BITS;
    let white = 255 * ((255 << PRECISION_BITS) - weight);
    let sum = u32::from(value) * weight + white + (0x80 << PRECISION_BITS);
    ((((sum >> 8) + sum) >> 8) >> PRECISION_BITS) as u8
}

/// Converts CMYK, where 255 is full ink, to RGB. Source: `cmyk2rgb` and `MULDIV255` of Pillow.
fn cmyk_to_rgb([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(255 - black);
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(ink) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_white_equals_pillow() {
        assert_eq!([10, 20, 30].map(|value| over_white(value, 128)), [132, 137, 142]);
        for value in 0..=255 {
            assert_eq!(over_white(value, 255), value);
            assert_eq!(over_white(value, 0), 255);
        }
    }

    #[test]
    fn color_key_depends_on_alpha_mode() {
        let keys = Keys { over_white: Some([7; 3]), dropped: Some([9; 3]) };
        let pixels = Pixels::Grey(vec![7, 9]);
        let rgb = |alpha| pixels.to_rgb(0..2, Flattening::new(alpha, keys));
        assert_eq!(*rgb(Alpha::White), [255, 255, 255, 9, 9, 9]);
        assert_eq!(*rgb(Alpha::Drop), [7, 7, 7, 255, 255, 255]);
    }

    #[test]
    fn converts_cmyk_to_rgb() {
        assert_eq!(cmyk_to_rgb([0, 0, 0, 0]), [255; 3]);
        assert_eq!(cmyk_to_rgb([255, 0, 128, 0]), [0, 255, 127]);
        assert_eq!(cmyk_to_rgb([0, 0, 0, 255]), [0; 3]);
    }
}
