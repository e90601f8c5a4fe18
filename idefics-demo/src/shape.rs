//! Shapes: their names, positions and geometry.

use std::f32::consts::{FRAC_1_SQRT_2, PI};
use std::fmt;

use rand::Rng;

use crate::colour::Colour;
use crate::random::direction;

/// Minimum and maximum size of a shape, as fractions of the picture's shorter side. The radius of the bounding circle
/// is the size times `Kind::unit_radius`.
const SIZES: [f32; 2] = [0.13, 0.26];

/// The kind of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// An equilateral triangle.
    Triangle,
    /// A star with five points.
    Star,
    /// A plus sign made of two equal bars, whose length is three times their width.
    Cross,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Circle, Self::Square, Self::Triangle, Self::Star, Self::Cross];

    /// Returns the name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Cross => "cross",
        }
    }

    /// Returns the plural of the name.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Star => "stars",
            Self::Cross => "crosses",
        }
    }

    /// Returns the area of a shape whose bounding circle has the radius 1.
    fn unit_area(self) -> f32 {
        match self {
            Self::Circle => PI,
            Self::Square | Self::Cross => 2.0,
            Self::Triangle => 1.299_038, // 3/4 √3
            Self::Star => 1.122_57,      // 5 sin 36° sin 18° / sin 54°
        }
    }

    /// Returns the radius of the bounding circle of a shape of size 1. The radii are chosen so that all kinds of the
    /// same size have similar areas.
    fn unit_radius(self) -> f32 {
        match self {
            Self::Circle => 0.85,
            Self::Square | Self::Cross => 1.0,
            Self::Triangle => 1.2,
            Self::Star => 1.3,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A shape in a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// The kind.
    pub kind: Kind,
    /// The name of the colour.
    pub colour: Colour,
    /// The exact colour: RGB, 0 to 255.
    pub shade: [u8; 3],
    /// Centre of the bounding circle, in pixels from the left and from the top.
    pub centre: [f32; 2],
    /// Radius of the bounding circle, in pixels.
    pub radius: f32,
    /// Cosine and sine of the clockwise rotation angle.
    pub turn: [f32; 2],
}

impl Shape {
    /// Creates a random shape that is entirely inside a picture of `width` by `height` pixels.
    pub(crate) fn random(rng: &mut (impl Rng + ?Sized), colour: Colour, kind: Kind, width: u32, height: u32) -> Self {
        let size = rng.random_range(SIZES[0]..SIZES[1]) * width.min(height) as f32;
        let radius = size * kind.unit_radius();
        let centre = [width, height].map(|side| rng.random_range(radius + 1.0..side as f32 - radius - 1.0));
        Self { kind, colour, shade: colour.shade(rng), centre, radius, turn: direction(rng) }
    }

    /// Returns colour and kind: `red circle`.
    pub fn name(&self) -> String {
        format!("{} {}", self.colour, self.kind)
    }

    /// Returns the total area in pixels, including parts hidden by other shapes.
    pub fn area(&self) -> f32 {
        self.kind.unit_area() * self.radius * self.radius
    }

    /// Returns the size grade, from 0 to 9, of the shape in a picture of `width` by `height` pixels. The grade is
    /// linear in the square root of the area, divided by the picture's shorter side. Grades 0 to 9 divide the range
    /// from the smallest to the largest size that [`Scene::random`] generates.
    ///
    /// [`Scene::random`]: crate::Scene::random
    pub fn grade(&self, width: u32, height: u32) -> u8 {
        let side = self.area().sqrt() / width.min(height) as f32;
        let [smallest, largest] = SIZES.map(|size| size * 1.5); // a circle of size 1 has the area of a square of side 1.5
        (10.0 * (side - smallest) / (largest - smallest)).clamp(0.0, 9.0) as u8
    }

    /// Returns the class of the shape in [`Scene::patch_labels`](crate::Scene::patch_labels): 1 + kind × 6 + colour.
    pub fn class(&self) -> u8 {
        1 + self.kind as u8 * Colour::ALL.len() as u8 + self.colour as u8
    }

    /// Returns whether a point is inside the shape, even if another shape hides the point. `x` and `y` are in pixels
    /// from the left and from the top.
    pub fn contains(&self, x: f32, y: f32) -> bool {
        self.level(x, y) <= 0.0
    }

    /// Returns the approximate signed distance to the edge in pixels: negative inside, positive outside. The values at
    /// two points differ by at most the distance between the points (1-Lipschitz).
    pub(crate) fn level(&self, x: f32, y: f32) -> f32 {
        let [dx, dy] = [x - self.centre[0], y - self.centre[1]];
        let [cos, sin] = self.turn;
        let (u, v) = (dx * cos + dy * sin, dy * cos - dx * sin); // in the shape's own axes
        let radius = self.radius;
        match self.kind {
            Kind::Circle => (u * u + v * v).sqrt() - radius,
            Kind::Square => u.abs().max(v.abs()) - FRAC_1_SQRT_2 * radius,
            Kind::Triangle => v.max(0.866_025_4 * u.abs() - 0.5 * v) - 0.5 * radius,
            Kind::Star => {
                // The lines through the sides bound five half-planes; a point of the star is outside at most one of
                // them.
                let sides = [
                    v,
                    0.951_056_5 * u + 0.309_017 * v,
                    -0.951_056_5 * u + 0.309_017 * v,
                    0.587_785_3 * u - 0.809_017 * v,
                    -0.587_785_3 * u - 0.809_017 * v,
                ];
                let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                for side in sides {
                    second = second.max(side.min(first));
                    first = first.max(side);
                }
                second - 0.309_017 * radius
            }
            Kind::Cross => {
                let [length, width] = [0.948_683_3 * radius, 0.316_227_8 * radius]; // half length and width of a bar
                (u.abs() - length).max(v.abs() - width).min((u.abs() - width).max(v.abs() - length))
            }
        }
    }

    /// Returns whether the distance between the bounding circles is less than `gap` pixels.
    pub(crate) fn is_near(&self, other: &Self, gap: f32) -> bool {
        let [dx, dy] = [self.centre[0] - other.centre[0], self.centre[1] - other.centre[1]];
        let reach = self.radius + other.radius + gap;
        dx * dx + dy * dy < reach * reach
    }
}
