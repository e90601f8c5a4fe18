//! The tokens of a batch, validated on the host before anything is sent to a device.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_nn::ContextView;
use idefics_processor::{latest_images, latest_images_in_branches};
use idefics_vision::PatchError;

/// Prompts whose tokens or images do not fit the model or each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The batch has no rows, or a row has no tokens.
    #[error("row {row}: the prompt is empty")]
    Empty {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// A token id outside the embedding table.
    #[error("row {row}: token id {id} is not less than the model's vocabulary size {vocab_size}")]
    TokenId {
        /// Row of the batch, from 0.
        row: usize,
        /// The token id.
        id: u32,
        /// Number of rows of the embedding table.
        vocab_size: usize,
    },
    /// A token that the tokenizer knows, but for which the model has no embedding.
    #[error(
        "row {row}: the prompt has the token `{token}` (id {id}), for which the model has no embedding (`vocab_size` \
         is {vocab_size}); remove it from the prompt"
    )]
    NoEmbedding {
        /// Row of the batch, from 0.
        row: usize,
        /// The token, as spelled in the vocabulary.
        token: String,
        /// Its id.
        id: u32,
        /// Number of rows of the embedding table.
        vocab_size: usize,
    },
    /// The number of image tokens in the prompt differs from the number of image vectors.
    #[error("the prompt has {tokens} image tokens, but the images have {vectors} vectors")]
    ImageTokenCount {
        /// Number of image tokens in the prompt.
        tokens: usize,
        /// Number of image vectors.
        vectors: usize,
    },
    /// An image was given to a model without a vision tower.
    #[error(
        "the model is a GGUF file of a text model and cannot read images; put its vision tower (mmproj-*.gguf) into \
         the same folder, or give it with --mmproj FILE"
    )]
    TextOnly,
    /// An image that the vision tower cannot split into patches.
    #[error("image {image_idx}: {source}")]
    Patches {
        /// Index in the list of images, from 0.
        image_idx: usize,
        /// The reason.
        source: PatchError,
    },
    /// A tile whose patches cannot be grouped into squares of `scale_factor` patches per side.
    #[error(
        "image {image_idx} has {rows}x{cols} patches, which are not multiples of `scale_factor` {scale_factor}; \
         configure the processor to make tiles of the model's size (`max_image_size`)"
    )]
    PixelShuffle {
        /// Index in the list of images, from 0.
        image_idx: usize,
        /// Number of rows of patches.
        rows: usize,
        /// Number of columns of patches.
        cols: usize,
        /// Side length of a square in patches.
        scale_factor: usize,
    },
    /// An image whose size does not match the position embeddings of the vision tower.
    #[error(
        "image {image_idx} is {width}x{height} pixels, but the model expects {expected}x{expected}; configure the \
         processor to resize it (`size`), or the model to interpolate its positions"
    )]
    ImageSize {
        /// Index in the list of images, from 0.
        image_idx: usize,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Expected width and height in pixels.
        expected: usize,
    },
    /// The number of images in the prompt differs from the number of images given.
    #[error("the prompt refers to {shown} images, but {images} are given")]
    ImageCount {
        /// Number of images that tokens of the prompt can attend to.
        shown: usize,
        /// Number of images given.
        images: usize,
    },
    /// An image whose number of vectors differs from that of the other images. Cross-attention needs the same number
    /// for all images. Without a resampler, the number depends on the size of the image.
    #[error(
        "image {image_idx} has {vectors} vectors, but the other images of the prompts have {expected}; without a \
         resampler, all images must have the same size: configure the processor to resize them (`size`)"
    )]
    VectorCount {
        /// Index in the list of images, from 0.
        image_idx: usize,
        /// Number of vectors of this image.
        vectors: usize,
        /// Number of vectors of the other images.
        expected: usize,
    },
    /// The image attention mask has the wrong shape, or lets a token attend to an image that its row does not have.
    #[error("row {row}: the image attention mask does not match the row's tokens and images")]
    SeenImages {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// The attention mask has the wrong shape, or masks slots other than left padding.
    #[error("row {row}: the attention mask must be zeros for left padding followed by ones, one value per token id")]
    Padding {
        /// Row of the batch, from 0.
        row: usize,
    },
}

/// The token ids of a batch, padded on the left to the longest row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    input_ids: Vec<u32>,
    left_padding: Vec<usize>,
    seq: usize,
    seen_images: Option<SeenImages>,
}

/// For each token, the images of its row that it may attend to. Models with cross-attention need this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenImages {
    /// Number of new images in each row, that is, images that are not cached yet.
    n_images: Vec<usize>,
    /// Which tokens see which images. Each part of the view is an image: first the images that are already cached, then
    /// the new ones.
    view: ContextView,
}

impl SeenImages {
    /// Creates the masks for rows that have `n_images` images each. `seen` is `[batch, seq, max_images]`, where
    /// `max_images` is the largest number of images in a row. It is true where a token may attend to an image.
    ///
    /// # Errors
    /// [`InputError::SeenImages`] if `seen` has the wrong length, or a token attends to an image that its row does
    /// not have.
    pub fn new(n_images: Vec<usize>, seq: usize, seen: Vec<bool>) -> Result<Self, InputError> {
        let (batch, max_images) = (n_images.len(), n_images.iter().copied().max().unwrap_or(0));
        if seen.len() != batch * seq * max_images {
            return Err(InputError::SeenImages { row: 0 });
        }
        for (row, tokens) in seen.chunks((seq * max_images).max(1)).enumerate() {
            if tokens.chunks(max_images).any(|images| images[n_images[row]..].contains(&true)) {
                return Err(InputError::SeenImages { row });
            }
        }
        Ok(Self { view: ContextView::new(batch, seq, max_images, seen), n_images })
    }

    /// Returns the number of new images in each row, that is, images that are not cached yet.
    pub fn n_images(&self) -> &[usize] {
        &self.n_images
    }

    /// Returns which images each token may attend to. Each part of the view is an image.
    pub fn view(&self) -> &ContextView {
        &self.view
    }
}

impl Prompts {
    /// Pads rows of token ids on the left with `pad_token_id`.
    ///
    /// # Errors
    /// [`InputError::Empty`].
    pub fn pad_left(rows: &[Vec<u32>], pad_token_id: u32) -> Result<Self, InputError> {
        if let Some(row) = rows.iter().position(Vec::is_empty).or(rows.is_empty().then_some(0)) {
            return Err(InputError::Empty { row });
        }
        let seq = rows.iter().map(Vec::len).max().unwrap_or(0);
        let left_padding: Vec<usize> = rows.iter().map(|row| seq - row.len()).collect();
        let input_ids = rows
            .iter()
            .zip(&left_padding)
            .flat_map(|(row, &padding)| std::iter::repeat_n(pad_token_id, padding).chain(row.iter().copied()))
            .collect();
        Ok(Self { input_ids, left_padding, seq, seen_images: None })
    }

    /// Takes rows that are already padded. `input_ids` and `attention_mask` are `[batch, seq]` in row-major order;
    /// the mask is true for real tokens.
    ///
    /// # Errors
    /// [`InputError::Padding`] if there is padding elsewhere than on the left; [`InputError::Empty`] if there are no
    /// tokens.
    pub fn from_padded(input_ids: Vec<u32>, attention_mask: &[bool], seq: usize) -> Result<Self, InputError> {
        if seq == 0 || input_ids.is_empty() {
            return Err(InputError::Empty { row: 0 });
        }
        if attention_mask.len() != input_ids.len() || !input_ids.len().is_multiple_of(seq) {
            return Err(InputError::Padding { row: 0 });
        }
        let mut left_padding = Vec::new();
        for (row, mask) in attention_mask.chunks(seq).enumerate() {
            let padding = mask.iter().position(|&real| real).ok_or(InputError::Empty { row })?;
            if mask[padding..].contains(&false) {
                return Err(InputError::Padding { row });
            }
            left_padding.push(padding);
        }
        Ok(Self { input_ids, left_padding, seq, seen_images: None })
    }

    /// Sets which images each token may attend to.
    ///
    /// # Errors
    /// [`InputError::SeenImages`] if the numbers of rows or tokens do not match.
    pub fn with_seen_images(mut self, seen_images: SeenImages) -> Result<Self, InputError> {
        if (seen_images.view.batch(), seen_images.view.n_new()) != (self.batch(), self.seq) {
            return Err(InputError::SeenImages { row: 0 });
        }
        self.seen_images = Some(seen_images);
        Ok(self)
    }

    /// Lets each token attend to the latest image before it, but not across an end token; see [`latest_images`].
    #[must_use]
    pub fn attend_to_latest_images(self, image_token_id: u32, eos_token_id: Option<u32>) -> Self {
        let latest = |row| latest_images(self.row(row), image_token_id, eos_token_id);
        let latest = (0..self.batch()).flat_map(latest).collect();
        self.attend_to(image_token_id, latest)
    }

    /// Does the same as [`Self::attend_to_latest_images`] for rows that branch. For each slot, `parents`
    /// (`[batch · seq]`) holds the index within the row of the previous slot in the same branch, or `None` for the
    /// first slot of a branch.
    #[must_use]
    pub fn attend_to_latest_images_in_branches(
        self,
        parents: &[Option<usize>],
        image_token_id: u32,
        eos_token_id: Option<u32>,
    ) -> Self {
        let latest = |(row, parents)| latest_images_in_branches(self.row(row), parents, image_token_id, eos_token_id);
        let latest = parents.chunks(self.seq).enumerate().flat_map(latest).collect();
        self.attend_to(image_token_id, latest)
    }

    /// Lets each slot attend to the image `latest[slot]` of its row, or to none.
    fn attend_to(mut self, image_token_id: u32, latest: Vec<Option<usize>>) -> Self {
        let count = |row| self.row(row).iter().filter(|&&id| id == image_token_id).count();
        let n_images: Vec<usize> = (0..self.batch()).map(count).collect();
        let max_images = n_images.iter().copied().max().unwrap_or(0);
        let images = |latest: Option<usize>| (0..max_images).map(move |image| latest == Some(image));
        let seen = latest.into_iter().flat_map(images).collect();
        let view = ContextView::new(self.batch(), self.seq, max_images, seen);
        self.seen_images = Some(SeenImages { n_images, view });
        self
    }

    /// Returns which images each token may attend to, if that has been set.
    pub fn seen_images(&self) -> Option<&SeenImages> {
        self.seen_images.as_ref()
    }

    /// Returns the rest of a single row whose first `len` tokens and first `n_images` images are already cached.
    ///
    /// # Panics
    /// If there are several rows, or fewer tokens or images than are to be skipped.
    #[must_use]
    pub fn skip_prefix(&self, len: usize, n_images: usize) -> Self {
        assert_eq!(self.batch(), 1, "only a single row can continue from a cache");
        let seen_images = self
            .seen_images
            .as_ref()
            .map(|seen| SeenImages { n_images: vec![seen.n_images[0] - n_images], view: seen.view.skip(len) });
        Self {
            input_ids: self.input_ids[len..].to_vec(),
            left_padding: vec![self.left_padding[0].saturating_sub(len)],
            seq: self.seq - len,
            seen_images,
        }
    }

    /// Returns a single row without its padding. If it is known which images each token may attend to, the row has only
    /// its own images.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row_alone(&self, row: usize) -> Self {
        let padding = self.left_padding[row];
        let seq = self.seq - padding;
        let seen_images = self.seen_images.as_ref().map(|SeenImages { n_images, view }| {
            // The rows of the view are filled up to the largest number of new images.
            let filler = n_images.iter().copied().max().unwrap_or(0) - n_images[row];
            let (parts, kept) = (view.n_parts(), view.n_parts() - filler);
            let tokens = view.seen().chunks(parts.max(1)).skip(row * self.seq + padding).take(seq);
            let seen = tokens.flat_map(|images| &images[..kept]).copied().collect();
            SeenImages { n_images: vec![n_images[row]], view: ContextView::new(1, seq, kept, seen) }
        });
        Self { input_ids: self.row(row)[padding..].to_vec(), left_padding: vec![0], seq, seen_images }
    }

    /// Returns the number of rows.
    pub fn batch(&self) -> usize {
        self.left_padding.len()
    }

    /// Returns the number of slots in each row, which is the number of tokens in the longest row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Returns the number of padded slots at the start of each row.
    pub fn left_padding(&self) -> &[usize] {
        &self.left_padding
    }

    /// Returns the token ids of a row, including its padding.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.input_ids[row * self.seq..(row + 1) * self.seq]
    }

    /// Returns the token ids of all rows, including padding, `[batch · seq]`.
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// Returns the tokens of all rows without padding.
    pub fn real_tokens(&self) -> impl Iterator<Item = u32> {
        (0..self.batch()).flat_map(|row| self.row(row)[self.left_padding[row]..].iter().copied())
    }

    /// Checks that the model has an embedding for each id, and uploads the ids, `[batch, seq]`.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    pub fn upload(&self, vocab_size: usize, device: &Device) -> Result<Tensor<2, Int>, InputError> {
        upload_ids(&self.input_ids, [self.batch(), self.seq], vocab_size, device)
    }

    /// Returns, for each slot, the row to select from `[text embeddings; image vectors]`. An image token selects the
    /// next image vector, any other token its own text embedding. Returns `None` if there are no images.
    ///
    /// # Errors
    /// [`InputError::ImageTokenCount`].
    pub fn merge_rows(&self, image_token_id: u32, n_vectors: usize) -> Result<Option<Vec<i32>>, InputError> {
        let tokens = self.input_ids.iter().filter(|&&id| id == image_token_id).count();
        if tokens != n_vectors {
            return Err(InputError::ImageTokenCount { tokens, vectors: n_vectors });
        }
        if n_vectors == 0 {
            return Ok(None);
        }
        let mut next_image_row = self.input_ids.len();
        let rows = self.input_ids.iter().enumerate().map(|(slot, &id)| {
            if id != image_token_id {
                return slot as i32;
            }
            next_image_row += 1;
            next_image_row as i32 - 1
        });
        Ok(Some(rows.collect()))
    }
}

impl InputError {
    /// Sets the index of the image at fault, if the error names an image.
    pub(crate) fn at_image(mut self, index: usize) -> Self {
        match &mut self {
            Self::Patches { image_idx, .. }
            | Self::PixelShuffle { image_idx, .. }
            | Self::ImageSize { image_idx, .. }
            | Self::VectorCount { image_idx, .. } => *image_idx = index,
            _ => {}
        }
        self
    }
}

/// Checks ids, `[batch, seq]`, and uploads them. GPU backends do not check ids themselves.
pub(crate) fn upload_ids(
    ids: &[u32],
    [batch, seq]: [usize; 2],
    vocab_size: usize,
    device: &Device,
) -> Result<Tensor<2, Int>, InputError> {
    check_ids(ids, seq, vocab_size)?;
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    Ok(Tensor::from_data(TensorData::new(ids, [batch, seq]), (device, DType::I32)))
}

/// Checks that the model has an embedding for each id. `ids` are rows of `seq` ids.
pub(crate) fn check_ids(ids: &[u32], seq: usize, vocab_size: usize) -> Result<(), InputError> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(slot) => Err(InputError::TokenId { row: slot / seq, id: ids[slot], vocab_size }),
    }
}
