//! Renders scenes.

use image::RgbImage;

use crate::scene::Scene;
use crate::shape::Shape;

/// Number of sample points per pixel along each side.
const SAMPLES: u32 = 3;

impl Scene {
    /// Renders the picture with anti-aliased edges. The result is the same on every machine.
    pub fn render(&self) -> RgbImage {
        let mut picture = self.background.paint(self.width, self.height);
        for shape in &self.shapes {
            for (x, y) in self.bounding_pixels(shape) {
                let covered = covered_samples(shape, x, y);
                if covered > 0 {
                    let pixel = picture.get_pixel_mut(x, y);
                    for (value, shade) in pixel.0.iter_mut().zip(shape.shade) {
                        *value = blend(*value, shade, covered);
                    }
                }
            }
        }
        picture
    }
}

/// Returns how many of the `SAMPLES²` sample points of a pixel are inside the shape.
fn covered_samples(shape: &Shape, x: u32, y: u32) -> u32 {
    let level = shape.level(x as f32 + 0.5, y as f32 + 0.5);
    // The sample points are at most 0.48 pixels from the centre of the pixel, so their levels differ from `level` by
    // less than 0.5.
    if level > 0.5 {
        return 0;
    }
    if level < -0.5 {
        return SAMPLES * SAMPLES;
    }
    let offset = |step: u32| (step as f32 + 0.5) / SAMPLES as f32;
    let points = (0..SAMPLES * SAMPLES).map(|i| (x as f32 + offset(i % SAMPLES), y as f32 + offset(i / SAMPLES)));
    points.filter(|&(x, y)| shape.contains(x, y)).count() as u32
}

/// Mixes `behind` and `shade`; the fraction of `shade` is `covered / SAMPLES²`.
fn blend(behind: u8, shade: u8, covered: u32) -> u8 {
    let all = SAMPLES * SAMPLES;
    ((u32::from(behind) * (all - covered) + u32::from(shade) * covered + all / 2) / all) as u8
}
