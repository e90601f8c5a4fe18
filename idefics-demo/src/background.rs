//! Backgrounds of scenes.

use image::RgbImage;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::random::{direction, pick};

/// Tones of backgrounds, as RGB, 0 to 255: white, greys, black and pale tones. None is close to a colour of the shapes.
const TONES: [[i16; 3]; 10] = [
    [250, 250, 250], // white
    [250, 250, 250],
    [215, 215, 215], // greys
    [140, 140, 140],
    [50, 50, 50],
    [8, 8, 8],       // black
    [240, 230, 211], // beige
    [221, 231, 240], // pale blue
    [224, 236, 222], // pale green
    [242, 226, 229], // pale pink
];

/// The background of a scene. Tones are RGB, 0 to 255.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Background {
    /// A single tone.
    Plain([u8; 3]),
    /// A linear gradient between two tones.
    Graded {
        /// The tone at the start of the gradient.
        from: [u8; 3],
        /// The tone at the end of the gradient.
        to: [u8; 3],
        /// The direction of the gradient: a unit vector (right, down).
        direction: [f32; 2],
    },
    /// A tone with random grain.
    Noisy {
        /// The mean tone.
        tone: [u8; 3],
        /// Maximum difference between a pixel and `tone`, in levels of 255.
        amplitude: u8,
        /// Seed of the grain.
        seed: u64,
    },
}

impl Background {
    /// Returns a random background. The three types are equally likely.
    pub fn random(rng: &mut (impl Rng + ?Sized)) -> Self {
        let tone = pick(rng, TONES);
        let base = shifted(tone, rng.random_range(-8..=8));
        match rng.random_range(0..3) {
            0 => Self::Plain(base),
            1 => {
                // Light tones get darker and dark tones lighter, so that clamping does not make the two tones equal.
                let shift = rng.random_range(12..=36) * if tone[1] > 128 { -1 } else { 1 };
                let (from, to) = (base, shifted(tone, shift));
                let (from, to) = if rng.random() { (from, to) } else { (to, from) };
                Self::Graded { from, to, direction: direction(rng) }
            }
            _ => Self::Noisy { tone: base, amplitude: rng.random_range(6..=20), seed: rng.random() },
        }
    }

    /// Renders the background without shapes. `width` and `height` are in pixels.
    pub(crate) fn paint(&self, width: u32, height: u32) -> RgbImage {
        let mut picture = RgbImage::new(width, height);
        match *self {
            Self::Plain(tone) => picture.pixels_mut().for_each(|pixel| pixel.0 = tone),
            Self::Graded { from, to, direction: [right, down] } => {
                let [half_width, half_height] = [0.5 * width as f32, 0.5 * height as f32];
                let reach = (right * half_width).abs() + (down * half_height).abs();
                for (x, y, pixel) in picture.enumerate_pixels_mut() {
                    let along = right * (x as f32 + 0.5 - half_width) + down * (y as f32 + 0.5 - half_height);
                    let share = 0.5 + 0.5 * along / reach; // 0 at `from`, 1 at `to`
                    for (channel, value) in pixel.0.iter_mut().enumerate() {
                        let [from, to] = [f32::from(from[channel]), f32::from(to[channel])];
                        *value = (from + share * (to - from)).round() as u8;
                    }
                }
            }
            Self::Noisy { tone, amplitude, seed } => {
                let mut grain = vec![0; (width * height) as usize];
                ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut grain);
                let levels = 2 * i16::from(amplitude) + 1;
                for (pixel, grain) in picture.pixels_mut().zip(grain) {
                    let shift = i16::from(grain) * levels / 256 - i16::from(amplitude);
                    pixel.0 = shifted(tone.map(i16::from), shift);
                }
            }
        }
        picture
    }
}

/// Returns `tone`, made lighter by `shift` levels, or darker if `shift` is negative.
fn shifted(tone: [i16; 3], shift: i16) -> [u8; 3] {
    tone.map(|value| (value + shift).clamp(0, 255) as u8)
}
