//! A decoded image: 8-bit RGB with its size.

use crate::ImageError;

/// An 8-bit RGB image with interleaved channels, `[height, width, 3]`, top row first.
///
/// Both sides are at least one pixel, and the length of the data is always `3 × width × height`.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl RgbImage {
    /// Creates an image from `3 × width × height` bytes, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`ImageError::PixelCount`] if a side is 0 or the length is wrong.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self, ImageError> {
        let expected = (u64::from(width) * u64::from(height)).saturating_mul(3);
        if expected == 0 || data.len() as u64 != expected {
            return Err(ImageError::PixelCount { width, height, expected, actual: data.len() });
        }
        Ok(Self { width, height, data })
    }

    /// Width, in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height, in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Borrows the pixel data, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns the pixel data, `[height, width, 3]`, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Returns a view of the whole image.
    pub fn view(&self) -> RgbView<'_> {
        RgbView {
            data: &self.data,
            stride: 3 * self.width as usize,
            left: 0,
            top: 0,
            width: self.width as usize,
            height: self.height as usize,
        }
    }
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RgbImage").field("width", &self.width).field("height", &self.height).finish_non_exhaustive()
    }
}

/// A borrowed rectangle of an [`RgbImage`]. Sizes are in pixels, `stride` is in bytes.
#[derive(Debug, Clone, Copy)]
pub struct RgbView<'a> {
    data: &'a [u8],
    stride: usize,
    left: usize,
    top: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl<'a> RgbView<'a> {
    /// Creates a view of contiguous rows of `width` pixels.
    pub(crate) fn of_rows(data: &'a [u8], width: usize) -> Self {
        Self { data, stride: 3 * width, left: 0, top: 0, width, height: data.len() / (3 * width) }
    }

    /// Width, in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height, in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the rectangle with columns `left..right` and rows `top..bottom` of this view.
    ///
    /// # Panics
    /// If the rectangle is empty or reaches outside the view.
    pub fn crop(&self, left: usize, top: usize, right: usize, bottom: usize) -> Self {
        assert!(
            left < right && right <= self.width && top < bottom && bottom <= self.height,
            "the crop is empty or outside the view"
        );
        Self { left: self.left + left, top: self.top + top, width: right - left, height: bottom - top, ..*self }
    }

    /// Returns row `y`, `[width, 3]`.
    ///
    /// # Panics
    /// If `y >= height`.
    pub fn row(&self, y: usize) -> &'a [u8] {
        let start = (self.top + y) * self.stride + 3 * self.left;
        &self.data[start..start + 3 * self.width]
    }

    /// Copies the view to a new image.
    pub fn to_image(self) -> RgbImage {
        let mut data = Vec::with_capacity(3 * self.width * self.height);
        for y in 0..self.height {
            data.extend_from_slice(self.row(y));
        }
        // The casts are lossless: a view is a part of an image, and the sides of an image are u32.
        RgbImage { width: self.width as u32, height: self.height as u32, data }
    }
}
