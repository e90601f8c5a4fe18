//! The number of images that are encoded together.

use std::num::NonZeroUsize;

/// How many images the vision tower encodes together. Larger batches use many cores better, but need more memory. The
/// batch size does not change the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VisionBatch {
    /// At most the given number of images.
    Images(NonZeroUsize),
    /// The number of images whose activations fit in the given number of bytes, but at least one.
    Bytes(u64),
}

/// Default limit in bytes: the activations of one image of 980 × 980 pixels in the largest tower, or of many smaller
/// images. Larger batches were not measurably faster.
const DEFAULT_BYTES: u64 = 256 << 20;

impl Default for VisionBatch {
    fn default() -> Self {
        Self::Bytes(DEFAULT_BYTES)
    }
}

impl VisionBatch {
    /// Returns the default limit, but at most a quarter of `available`, the number of bytes that the weights leave
    /// free.
    pub fn within(available: u64) -> Self {
        Self::Bytes(DEFAULT_BYTES.min(available / 4))
    }

    /// Returns the number of images per batch, at least one. Each image needs `image_bytes` bytes of activations.
    pub(crate) fn images(self, image_bytes: u64) -> usize {
        match self {
            Self::Images(images) => images.get(),
            Self::Bytes(bytes) => usize::try_from(bytes / image_bytes.max(1)).unwrap_or(usize::MAX).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_has_at_least_one_image() {
        assert_eq!(VisionBatch::within(3).images(1000), 1);
        assert_eq!(VisionBatch::within(8000).images(1000), 2);
        assert_eq!(VisionBatch::within(u64::MAX).images(DEFAULT_BYTES / 3), 3);
        assert_eq!(VisionBatch::Images(NonZeroUsize::MIN).images(1), 1);
    }
}
