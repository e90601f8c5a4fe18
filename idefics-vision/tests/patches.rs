use idefics_vision::{PatchError, PatchGrid, PatchLayout, plan_batches};
use proptest::prelude::*;

/// Positions computed by Transformers. `xtask/reference/position_buckets.py` writes the file.
const FIXTURE: &str = include_str!("fixtures/position_buckets.json");

#[test]
fn positions_match_reference_for_all_patch_counts() {
    let fixture: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
    let positions = |rows, cols| PatchLayout::new(&[PatchGrid { rows, cols }], 70).position_ids();
    for patches in 1..=70 {
        let expected: Vec<i32> = serde_json::from_value(fixture["buckets"][patches.to_string()].clone()).unwrap();
        assert_eq!(positions(1, patches), expected, "{patches} across");
        assert_eq!(positions(patches, 1), expected.iter().map(|id| id * 70).collect::<Vec<_>>(), "{patches} down");
    }
}

#[test]
fn trained_grid_has_consecutive_positions() {
    let full = PatchLayout::new(&[PatchGrid { rows: 7, cols: 7 }], 7);
    assert_eq!(full.position_ids(), (0..49).collect::<Vec<i32>>());
    assert_eq!(full.attention_mask(), None);
}

#[test]
fn partial_patches_are_dropped() {
    let grid = |height, width| PatchGrid::whole_patches(height, width, 14);
    assert_eq!(grid(14, 14), Ok(PatchGrid { rows: 1, cols: 1 }));
    assert_eq!(grid(27, 55), Ok(PatchGrid { rows: 1, cols: 3 }));
    assert_eq!(grid(980, 993), Ok(PatchGrid { rows: 70, cols: 70 }));
    assert_eq!(grid(13, 200), Err(PatchError::TooSmall { width: 200, height: 13, patch_size: 14 }));
    assert_eq!(grid(0, 0), Err(PatchError::TooSmall { width: 0, height: 0, patch_size: 14 }));
    assert_eq!(grid(20, 994), Ok(PatchGrid { rows: 1, cols: 71 })); // more columns than the position table
    assert!(matches!(grid(14 * 200, 14 * 200), Err(PatchError::TooMany { patches: 40_000, .. })));
}

fn grids(n_images: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<PatchGrid>> {
    proptest::collection::vec((1_usize..=9, 1_usize..=9).prop_map(|(rows, cols)| PatchGrid { rows, cols }), n_images)
}

proptest! {
    #[test]
    fn batch_layout_matches_layouts_of_single_images(grids in grids(1..6)) {
        let layout = PatchLayout::new(&grids, 9);
        let shared = layout.shared();
        let positions = layout.position_ids();
        let mask = layout.attention_mask().unwrap_or_else(|| vec![true; positions.len()]);
        prop_assert_eq!(positions.len(), grids.len() * shared.patches());
        prop_assert_eq!(mask.len(), positions.len());
        for (image, &grid) in grids.iter().enumerate() {
            let alone = PatchLayout::new(&[grid], 9).position_ids();
            for patch in 0..shared.patches() {
                let (row, col) = (patch / shared.cols, patch % shared.cols);
                let real = row < grid.rows && col < grid.cols;
                let index = image * shared.patches() + patch;
                prop_assert_eq!(mask[index], real);
                prop_assert_eq!(positions[index], if real { alone[row * grid.cols + col] } else { 0 });
            }
        }
    }

    #[test]
    fn planned_batches_contain_each_image_once(grids in grids(0..40), max_patches in 0_usize..200) {
        let batches = plan_batches(&grids, |grid| max_patches / grid.patches());
        let mut images: Vec<usize> = batches.iter().flatten().copied().collect();
        images.sort_unstable();
        prop_assert_eq!(images, (0..grids.len()).collect::<Vec<_>>());
        for batch in batches {
            prop_assert!(!batch.is_empty());
            prop_assert!(batch.iter().all(|&image| grids[image] == grids[batch[0]]), "all images of a batch have the same grid");
            let patches = batch.len() * grids[batch[0]].patches();
            prop_assert!(batch.len() == 1 || patches <= max_patches, "{patches} patches");
        }
    }
}
