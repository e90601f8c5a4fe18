//! Which image a token sees in the first Idefics: the latest before it.

use crate::inputs::TokenBatch;

/// For each token the image that it sees, counted from 0; nothing before the first image, and nothing after an end
/// token until the next image. An image token sees its own image.
///
/// Source: `image_attention_mask_for_packed_input_ids`.
pub fn latest_images(input_ids: &[u32], image_token_id: u32, eos_token_id: Option<u32>) -> Vec<Option<usize>> {
    let parents: Vec<Option<usize>> = (0..input_ids.len()).map(|slot| slot.checked_sub(1)).collect();
    latest_images_behind(input_ids, &parents, image_token_id, eos_token_id)
}

/// As [`latest_images`] for texts that share a beginning: each token follows the one in the slot `parents` says, which
/// is before it, or nothing.
///
/// # Panics
/// If a token follows one that is not before it.
pub fn latest_images_behind(
    input_ids: &[u32],
    parents: &[Option<usize>],
    image_token_id: u32,
    eos_token_id: Option<u32>,
) -> Vec<Option<usize>> {
    // Up to each token: the images, counted, and whether a text has ended since.
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

/// The reference's `image_attention_mask`: `[batch, seq, n_images]`, 1 where a token sees an image, row after row.
///
/// `n_images` is the largest number of images of a row, and 1 where no row has any. Source:
/// `IdeficsProcessor.__call__`, `incremental_to_binary_attention_mask`.
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
    fn a_token_sees_the_latest_image_before_it() {
        assert_eq!(seen(&[0, 1, 8, 9, 8, 9, 8, 5]), [None, None, None, Some(0), Some(0), Some(1), Some(1), Some(1)]);
    }

    #[test]
    fn nothing_is_seen_after_an_end_until_the_next_image() {
        assert_eq!(seen(&[9, 5, 2, 5, 2, 9, 5]), [Some(0), Some(0), Some(0), None, None, Some(1), Some(1)]);
        assert_eq!(latest_images(&[9, 2, 5], IMAGE, None), [Some(0); 3]);
    }

    #[test]
    fn an_end_in_one_text_is_none_in_another() {
        let parents = [None, Some(0), Some(1), Some(2), Some(1), None];
        let seen = latest_images_behind(&[9, 5, 2, 5, 6, 7], &parents, IMAGE, Some(EOS));
        assert_eq!(seen, [Some(0), Some(0), Some(0), None, Some(0), None]);
    }
}
