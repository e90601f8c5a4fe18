//! What is to be made of a picture.

use super::Filter;
use crate::RgbView;

/// A rectangle of a picture that is shown upright: half-open ranges of columns and rows, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Crop {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// One past the last column.
    pub right: u32,
    /// One past the last row.
    pub bottom: u32,
}

impl Crop {
    /// The whole of a picture of `width` × `height` pixels.
    pub fn whole(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, right: width, bottom: height }
    }

    /// Width, in pixels; 0 if the right side is not right of the left side.
    pub fn width(&self) -> u32 {
        self.right.saturating_sub(self.left)
    }

    /// Height, in pixels; 0 if the bottom is not below the top.
    pub fn height(&self) -> u32 {
        self.bottom.saturating_sub(self.top)
    }

    /// Whether it is not empty and inside a picture of `width` × `height` pixels.
    pub(crate) fn is_inside(&self, width: u32, height: u32) -> bool {
        self.left < self.right && self.right <= width && self.top < self.bottom && self.bottom <= height
    }
}

/// A picture to make of another one: a rectangle of it, resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResizeTarget {
    /// The rectangle.
    pub crop: Crop,
    /// Width of the new picture, in pixels; at least 1.
    pub width: u32,
    /// Height of the new picture, in pixels; at least 1.
    pub height: u32,
    /// How pixels are made.
    pub filter: Filter,
}

impl ResizeTarget {
    /// Whether the rectangle has pixels.
    pub fn has_pixels(&self) -> bool {
        self.crop.width() > 0 && self.crop.height() > 0
    }

    /// The picture as it is.
    pub(crate) fn unchanged(width: u32, height: u32) -> Self {
        Self { crop: Crop::whole(width, height), width, height, filter: Filter::Nearest }
    }

    /// The whole view, resized.
    pub(super) fn of_view(view: RgbView<'_>, width: u32, height: u32, filter: Filter) -> Self {
        // Sides of a view come from a picture, whose sides are u32.
        Self { crop: Crop::whole(view.width as u32, view.height as u32), width, height, filter }
    }
}
