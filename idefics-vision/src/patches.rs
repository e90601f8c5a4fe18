//! Patch grids of images, and the positions of patches in the position table. All values are integers on the host, not
//! tensors.

use std::collections::BTreeMap;

/// An image with too few or too many patches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// A side of the image is shorter than a patch.
    #[error("the image has {width}x{height} pixels; expected at least {patch_size}x{patch_size} (one patch)")]
    TooSmall {
        /// Width of the image, in pixels.
        width: usize,
        /// Height of the image, in pixels.
        height: usize,
        /// Side of a patch, in pixels.
        patch_size: usize,
    },
    /// Attention over the patches of the image would need too much memory.
    #[error("the image has {patches} patches ({width}x{height} pixels); expected at most {limit}; scale it down")]
    TooMany {
        /// Width of the image, in pixels.
        width: usize,
        /// Height of the image, in pixels.
        height: usize,
        /// Number of whole patches in the image.
        patches: usize,
        /// Largest accepted number: [`PatchGrid::MAX_PATCHES`].
        limit: usize,
    },
}

/// The grid of an image's real patches, without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchGrid {
    /// Number of rows of patches.
    pub rows: usize,
    /// Number of columns of patches.
    pub cols: usize,
}

impl PatchGrid {
    /// Maximum number of patches per image: over three times as many as the largest image of a published model has.
    pub const MAX_PATCHES: usize = 16_384;

    /// Computes the grid of an image of `height` × `width` pixels. As in Idefics2, partial patches at the right and
    /// bottom are dropped. An image may have more patches along a side than the position table; several patches then
    /// share a position.
    ///
    /// # Errors
    /// [`PatchError`] if the image has no whole patch, or more than [`PatchGrid::MAX_PATCHES`] patches.
    ///
    /// # Panics
    /// If `patch_size` is 0.
    pub fn whole_patches(height: usize, width: usize, patch_size: usize) -> Result<Self, PatchError> {
        let grid = Self { rows: height / patch_size, cols: width / patch_size };
        if grid.patches() == 0 {
            return Err(PatchError::TooSmall { width, height, patch_size });
        }
        if grid.patches() > Self::MAX_PATCHES {
            return Err(PatchError::TooMany { width, height, patches: grid.patches(), limit: Self::MAX_PATCHES });
        }
        Ok(grid)
    }

    /// Returns the number of patches.
    pub fn patches(self) -> usize {
        self.rows * self.cols
    }
}

/// The patch grids of a batch of images, from which positions and masks are computed.
///
/// All images of a batch share one grid: the smallest that contains all their grids. Patches outside an image's own
/// grid are padding, and are masked in attention.
#[derive(Debug, Clone)]
pub struct PatchLayout {
    grids: Vec<PatchGrid>,
    /// The grid that all images share: the smallest that contains all of `grids`.
    shared: PatchGrid,
    /// Number of positions along each side of the position table.
    positions_per_side: usize,
}

impl PatchLayout {
    /// Creates the layout of a batch of images with these grids.
    ///
    /// # Panics
    /// If `grids` is empty.
    pub fn new(grids: &[PatchGrid], positions_per_side: usize) -> Self {
        let side = |of: fn(&PatchGrid) -> usize| grids.iter().map(of).max().expect("a batch has at least one image");
        let shared = PatchGrid { rows: side(|grid| grid.rows), cols: side(|grid| grid.cols) };
        Self { grids: grids.to_vec(), shared, positions_per_side }
    }

    /// Returns the number of images in the batch.
    pub fn n_images(&self) -> usize {
        self.grids.len()
    }

    /// Returns the grid that all images share.
    pub fn shared(&self) -> PatchGrid {
        self.shared
    }

    /// Computes the index in the position table for each patch of the shared grid: `[n_images, patches]`, flattened.
    /// The index of padding patches is 0.
    ///
    /// An image of `r × c` patches is spread over the whole table, as if it were stretched to the trained square
    /// (NaViT's fractional coordinates, <https://arxiv.org/abs/2307.06304>).
    ///
    /// Source: `Idefics2VisionEmbeddings`.
    pub fn position_ids(&self) -> Vec<i32> {
        let n = self.positions_per_side;
        let mut position_ids = Vec::with_capacity(self.n_images() * self.shared.patches());
        for grid in &self.grids {
            let [row_buckets, col_buckets] = [grid.rows, grid.cols].map(|patches| buckets(patches, n));
            for row in 0..self.shared.rows {
                for col in 0..self.shared.cols {
                    let bucket = row_buckets.get(row).zip(col_buckets.get(col));
                    position_ids.push(bucket.map_or(0, |(row, col)| (row * n + col) as i32));
                }
            }
        }
        position_ids
    }

    /// Computes a mask that is true for real patches and false for padding: `[n_images, patches]`, flattened. Returns
    /// `None` if there is no padding.
    pub fn attention_mask(&self) -> Option<Vec<bool>> {
        if self.grids.iter().all(|&grid| grid == self.shared) {
            return None;
        }
        let real = self.grids.iter().flat_map(|grid| {
            (0..self.shared.rows)
                .flat_map(move |row| (0..self.shared.cols).map(move |col| row < grid.rows && col < grid.cols))
        });
        Some(real.collect())
    }
}

/// Computes the bucket, from 0 to `n - 1`, of each fractional coordinate `i / patches`.
///
/// Numerics: a coordinate `i / patches` can equal a boundary `j / n`, so each step must round to f32 where Transformers
/// does. With a side of 70 positions, the result therefore differs from `floor(i · n / patches)` for 25, 49, 50 and 55
/// patches.
fn buckets(patches: usize, n: usize) -> Vec<usize> {
    const LARGEST: f32 = 1.0 - 1e-6;
    let start = 1.0 / n as f64;
    let n_boundaries = ((1.0 - start) / start).ceil() as usize; // length of torch.arange(start, 1, start)
    let boundaries: Vec<f32> = (0..n_boundaries).map(|j| (start + j as f64 * start) as f32).collect();
    let step = (1.0 / patches as f64) as f32;
    (0..patches)
        .map(|i| {
            let fraction = (i as f32 * step).min(LARGEST);
            boundaries.partition_point(|&boundary| boundary <= fraction).min(n - 1)
        })
        .collect()
}

/// Splits images into batches without padding: all images of a batch have the same grid.
///
/// `max_images` returns the maximum number of images per batch for a grid. This maximum limits the memory of
/// activations; a maximum of 0 counts as 1. Returns batches of indices into `grids`; each index occurs once.
pub fn plan_batches(grids: &[PatchGrid], max_images: impl Fn(PatchGrid) -> usize) -> Vec<Vec<usize>> {
    let mut by_grid: BTreeMap<PatchGrid, Vec<usize>> = BTreeMap::new();
    for (image_idx, &grid) in grids.iter().enumerate() {
        by_grid.entry(grid).or_default().push(image_idx);
    }
    by_grid
        .into_iter()
        .flat_map(|(grid, images)| images.chunks(max_images(grid).max(1)).map(<[usize]>::to_vec).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buckets in which Transformers differs from integer arithmetic: (number of patches, [(patch, bucket)]).
    const EXCEPTIONS: [(usize, &[(usize, usize)]); 4] = [
        (25, &[(5, 13), (10, 27), (15, 41), (20, 55)]),
        (49, &[(7, 9), (14, 19), (28, 39), (35, 49)]),
        (50, &[(5, 6), (10, 13), (15, 20), (20, 27), (30, 41), (40, 55)]),
        (55, &[(11, 13), (22, 27), (33, 41), (44, 55)]),
    ];

    #[test]
    fn buckets_match_floor_except_where_reference_rounds() {
        for patches in 1..=70 {
            let mut expected: Vec<usize> = (0..patches).map(|i| i * 70 / patches).collect();
            for (_, exceptions) in EXCEPTIONS.iter().filter(|(n, _)| *n == patches) {
                for &(patch, bucket) in *exceptions {
                    assert_eq!(expected[patch], bucket + 1);
                    expected[patch] = bucket;
                }
            }
            assert_eq!(buckets(patches, 70), expected, "{patches} patches");
        }
    }

    #[test]
    fn more_patches_than_positions_share_buckets() {
        // Expected values: `Idefics2VisionEmbeddings` with image_size 32 and patch_size 8, for 8 patches.
        assert_eq!(buckets(8, 4), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert!((1..=200).all(|patches| buckets(patches, 70).iter().all(|&bucket| bucket < 70)));
    }

    #[test]
    fn buckets_of_other_table_sizes_match_floor() {
        for n in [16, 24, 26, 27, 32] {
            for patches in 1..=n {
                assert_eq!(buckets(patches, n), (0..patches).map(|i| i * n / patches).collect::<Vec<_>>());
            }
        }
    }
}
