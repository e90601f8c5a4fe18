//! Which image a token sees in the first Idefics: the latest before it.

use crate::inputs::TokenBatch;

/// For each token the image that it sees, counted from 0; nothing before the first image, and nothing after an end
/// token until the next image. An image token sees its own image.
///
/// Source: `image_attention_mask_for_packed_input_ids`.
pub fn latest_images(input_ids: &[u32], image_token_id: u32, eos_token_id: Option<u32>) -> Vec<Option<usize>> {
    let mut latest: Option<usize> = None;
    let mut is_over = false;
    let see = |&id: &u32| {
        if id == image_token_id {
            latest = Some(latest.map_or(0, |image| image + 1));
            is_over = false;
        }
        let seen = latest.filter(|_| !is_over);
        is_over |= Some(id) == eos_token_id;
        seen
    };
    input_ids.iter().map(see).collect()
}

/// The reference's `image_attention_mask`: `[batch, seq, n_images]`, 1 where a token sees an image, row after row.
///
/// `n_images` is the largest number of images of a row, and 1 where no row has any. Source: `IdeficsProcessor.__call__`,
/// `incremental_to_binary_attention_mask`.
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
}
