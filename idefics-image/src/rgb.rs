//! One decoded picture: 8-bit RGB with its size.

use crate::ImageError;

/// A picture as 8-bit RGB, rows from the top, pixels from the left, channels together: `[height, width, 3]`.
///
/// The length of the data always follows from the size, and both sides are at least one pixel, so nothing downstream
/// guesses a layout from the numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl RgbImage {
    /// Takes `3 × width × height` bytes, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`ImageError::PixelCount`] if a side is 0 or the length differs.
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

    /// Values 0 to 255, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The values, `[height, width, 3]`, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The whole picture as a view.
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

/// A rectangle of an [`RgbImage`], without a copy. Sizes in pixels, `stride` in bytes.
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
    /// Rows of `width` pixels that follow one another.
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

    /// The rectangle of rows `top..bottom` and columns `left..right` of this view.
    ///
    /// # Panics
    /// If the rectangle is empty or reaches outside the view.
    pub fn crop(&self, left: usize, top: usize, right: usize, bottom: usize) -> Self {
        assert!(left < right && right <= self.width && top < bottom && bottom <= self.height, "the crop is inside");
        Self { left: self.left + left, top: self.top + top, width: right - left, height: bottom - top, ..*self }
    }

    /// One row, `[width, 3]`.
    ///
    /// # Panics
    /// If `y` is not below the height.
    pub fn row(&self, y: usize) -> &'a [u8] {
        let start = (self.top + y) * self.stride + 3 * self.left;
        &self.data[start..start + 3 * self.width]
    }

    /// Copies the rectangle out.
    pub fn to_image(self) -> RgbImage {
        let mut data = Vec::with_capacity(3 * self.width * self.height);
        for y in 0..self.height {
            data.extend_from_slice(self.row(y));
        }
        // Sides of a view come from an image, whose sides are u32.
        RgbImage { width: self.width as u32, height: self.height as u32, data }
    }
}
