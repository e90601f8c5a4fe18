//! In IDEFICS v1, each token attends to a single image: the latest image before the token.

use crate::inputs::TokenBatch;

/// Returns the index of the image that each token attends to: the latest image up to and including the token.
///
/// The entry is `None` for tokens before the first image, and for tokens between an end-of-text token and the next
/// image. The end-of-text token itself still attends to the image before it. An image token attends to its own image.
///
/// Source: `image_attention_mask_for_packed_input_ids`.
pub fn latest_images(input_ids: &[u32], image_token_id: u32, eos_token_id: Option<u32>) -> Vec<Option<usize>> {
    let parents: Vec<Option<usize>> = (0..input_ids.len()).map(|slot| slot.checked_sub(1)).collect();
    latest_images_in_branches(input_ids, &parents, image_token_id, eos_token_id)
}

/// Returns the same as [`latest_images`], for several texts that share prefixes.
///
/// `parents[i]` is the index of the token before token `i` in its text, or `None` if token `i` begins a text.
///
/// # Panics
/// If a parent's index is not below the index of its token.
pub fn latest_images_in_branches(
    input_ids: &[u32],
    parents: &[Option<usize>],
    image_token_id: u32,
    eos_token_id: Option<u32>,
) -> Vec<Option<usize>> {
    // For each token: the number of images up to it, and whether an end-of-text token followed the last image.
    let mut states: Vec<(usize, bool)> = Vec::with_capacity(input_ids.len());
    let see = |(&id, parent): (&u32, &Option<usize>)| {
        let (mut images, mut is_over) = parent.map_or((0, false), |parent| states[parent]);
        if id == image_token_id {
            images += 1;
            is_over = false;
        }
        let seen = images.checked_sub(1).filter(|_| !is_over);
        states.push((images, is_over || Some(id) == eos_token_id));
        seen
    };
    input_ids.iter().zip(parents).map(see).collect()
}

/// Returns the reference's `image_attention_mask`, `[batch, seq, n_images]` in row-major order: 1 where a token attends
/// to an image, else 0.
///
/// `n_images` must be the largest number of images in a row, or 1 if no row has an image.
///
/// Source: `IdeficsProcessor.__call__`, `incremental_to_binary_attention_mask`.
pub fn image_attention_mask(
    tokens: &TokenBatch,
    n_images: usize,
    image_token_id: u32,
    eos_token_id: Option<u32>,
) -> Vec<i64> {
    let rows = tokens.input_ids.chunks(tokens.seq.max(1)).map(|row| {
        let ids: Vec<u32> = row.iter().map(|&id| id as u32).collect();
        latest_images(&ids, image_token_id, eos_token_id)
    });
    rows.flatten().flat_map(|seen| (0..n_images).map(move |image| i64::from(seen == Some(image)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u32 = 9;
    const EOS: u32 = 2;

    fn seen(ids: &[u32]) -> Vec<Option<usize>> {
        latest_images(ids, IMAGE, Some(EOS))
    }

    #[test]
    fn token_sees_latest_image_before_it() {
        assert_eq!(seen(&[0, 1, 8, 9, 8, 9, 8, 5]), [None, None, None, Some(0), Some(0), Some(1), Some(1), Some(1)]);
    }

    #[test]
    fn no_image_is_seen_between_end_token_and_next_image() {
        assert_eq!(seen(&[9, 5, 2, 5, 2, 9, 5]), [Some(0), Some(0), Some(0), None, None, Some(1), Some(1)]);
        assert_eq!(latest_images(&[9, 2, 5], IMAGE, None), [Some(0); 3]);
    }

    #[test]
    fn end_token_affects_only_its_own_branch() {
        let parents = [None, Some(0), Some(1), Some(2), Some(1), None];
        let seen = latest_images_in_branches(&[9, 5, 2, 5, 6, 7], &parents, IMAGE, Some(EOS));
        assert_eq!(seen, [Some(0), Some(0), Some(0), None, Some(0), None]);
    }
}
