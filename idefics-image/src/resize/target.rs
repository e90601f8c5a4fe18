//! The rectangle to read from an image, and the size and filter to resize it with.

use super::Filter;
use crate::RgbView;

/// A rectangle of an upright image: half-open ranges of columns and rows, in pixels.
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
    /// Returns the rectangle of a whole image of `width` × `height` pixels.
    pub fn whole(width: u32, height: u32) -> Self {
        Self { left: 0, top: 0, right: width, bottom: height }
    }

    /// Returns the width in pixels, or 0 if `right` is not greater than `left`.
    pub fn width(&self) -> u32 {
        self.right.saturating_sub(self.left)
    }

    /// Returns the height in pixels, or 0 if `bottom` is not greater than `top`.
    pub fn height(&self) -> u32 {
        self.bottom.saturating_sub(self.top)
    }

    /// Returns whether the rectangle is not empty and lies inside an image of `width` × `height` pixels.
    pub(crate) fn is_inside(&self, width: u32, height: u32) -> bool {
        self.left < self.right && self.right <= width && self.top < self.bottom && self.bottom <= height
    }
}

/// A requested output image: a rectangle of the input image, and the size and filter to resize it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResizeTarget {
    /// The rectangle of the upright input image.
    pub crop: Crop,
    /// Width of the output, in pixels; at least 1.
    pub width: u32,
    /// Height of the output, in pixels; at least 1.
    pub height: u32,
    /// The resampling filter.
    pub filter: Filter,
}

impl ResizeTarget {
    /// Returns whether the rectangle has at least one pixel.
    pub fn has_pixels(&self) -> bool {
        self.crop.width() > 0 && self.crop.height() > 0
    }

    /// Returns the target that keeps the whole image at its own size.
    pub(crate) fn unchanged(width: u32, height: u32) -> Self {
        Self { crop: Crop::whole(width, height), width, height, filter: Filter::Nearest }
    }

    /// Returns the target that resizes a whole view.
    pub(super) fn of_view(view: RgbView<'_>, width: u32, height: u32, filter: Filter) -> Self {
        // A view is part of an image, whose width and height are u32.
        Self { crop: Crop::whole(view.width as u32, view.height as u32), width, height, filter }
    }
}
