//! How many pictures go through a vision tower together.

use std::num::NonZeroUsize;

/// How many pictures the vision tower encodes at a time: more of them keep many cores busy, and take more memory. What
/// comes out is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VisionBatch {
    /// So many at most.
    Images(NonZeroUsize),
    /// As many as take this many bytes of activations, and one at least.
    Bytes(u64),
}

/// Activations of one 980-pixel square in the largest tower, or of many smaller pictures: more at a time were not seen to
/// be faster.
const ENOUGH_BYTES: u64 = 256 << 20;

impl Default for VisionBatch {
    fn default() -> Self {
        Self::Bytes(ENOUGH_BYTES)
    }
}

impl VisionBatch {
    /// What is enough where `available` bytes are left beside the weights: at most a quarter of them.
    pub fn within(available: u64) -> Self {
        Self::Bytes(ENOUGH_BYTES.min(available / 4))
    }

    /// Pictures at a time, if each takes `image_bytes` of activations; at least one.
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
    fn there_is_always_one() {
        assert_eq!(VisionBatch::within(3).images(1000), 1);
        assert_eq!(VisionBatch::within(8000).images(1000), 2);
        assert_eq!(VisionBatch::within(u64::MAX).images(ENOUGH_BYTES / 3), 3);
        assert_eq!(VisionBatch::Images(NonZeroUsize::MIN).images(1), 1);
    }
}
