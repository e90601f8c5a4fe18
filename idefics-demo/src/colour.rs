//! The six colours of shapes.

use std::fmt;

use rand::Rng;

/// The colour of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// Hues around 0°.
    Red,
    /// Hues around 29°.
    Orange,
    /// Hues around 54°.
    Yellow,
    /// Hues around 124°.
    Green,
    /// Hues around 220°.
    Blue,
    /// Hues around 278°.
    Purple,
}

impl Colour {
    /// All colours.
    pub const ALL: [Self; 6] = [Self::Red, Self::Orange, Self::Yellow, Self::Green, Self::Blue, Self::Purple];

    /// Returns the name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Purple => "purple",
        }
    }

    /// Returns the indefinite article of the name: `a` or `an`.
    pub fn article(self) -> &'static str {
        if self == Self::Orange { "an" } else { "a" }
    }

    /// Returns a random shade that is clearly recognisable as this colour: RGB, 0 to 255.
    pub fn shade(self, rng: &mut (impl Rng + ?Sized)) -> [u8; 3] {
        // Ranges of the hue in degrees, and of the lightness. Red, orange and yellow have the closest hues: 21° and 17°
        // apart. Red is also darker.
        let (hue, lightness) = match self {
            Self::Red => (-6.0..4.0, 0.40..0.50),
            Self::Orange => (25.0..33.0, 0.49..0.55),
            Self::Yellow => (50.0..57.0, 0.48..0.56),
            Self::Green => (108.0..140.0, 0.30..0.42),
            Self::Blue => (212.0..228.0, 0.42..0.56),
            Self::Purple => (272.0..284.0, 0.38..0.50),
        };
        from_hsl(rng.random_range(hue), rng.random_range(0.75..0.95), rng.random_range(lightness))
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Converts HSL to RGB, 0 to 255. The hue is in degrees from -60 to 360, saturation and lightness are from 0 to 1.
fn from_hsl(hue: f32, saturation: f32, lightness: f32) -> [u8; 3] {
    let chroma = saturation * lightness.min(1.0 - lightness);
    [0.0, 8.0, 4.0].map(|offset| {
        let sector = (offset + (hue + 360.0) / 30.0) % 12.0;
        let level = lightness - chroma * (sector - 3.0).min(9.0 - sector).clamp(-1.0, 1.0);
        (255.0 * level).round() as u8
    })
}
