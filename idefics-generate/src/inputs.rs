//! Tokens of a batch, checked on the host before anything reaches a device.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use idefics_nn::ContextView;
use idefics_processor::{latest_images, latest_images_behind};
use idefics_vision::PatchError;

/// Why tokens and images do not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// No rows, or a row without a token.
    #[error("row {row}: the prompt is empty")]
    Empty {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// A token that the model has no embedding for.
    #[error("row {row}: token id {id} is not below the model's vocabulary size {vocab_size}")]
    TokenId {
        /// Row of the batch, from 0.
        row: usize,
        /// The token.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// A token that the tokenizer has and the model has no embedding for.
    #[error(
        "row {row}: the prompt has the token `{token}` (id {id}), for which the model has no embedding (`vocab_size` is \
         {vocab_size}); leave it out"
    )]
    NoEmbedding {
        /// Row of the batch, from 0.
        row: usize,
        /// The token, as the vocabulary spells it.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// The prompt's image tokens and the images' vectors differ in number.
    #[error("the prompt has {tokens} image tokens, the images give {vectors} vectors")]
    ImageTokenCount {
        /// Image tokens in the prompt.
        tokens: usize,
        /// Vectors of the images.
        vectors: usize,
    },
    /// An image for a model that has no vision tower.
    #[error(
        "the model is a GGUF file of text alone and sees no images; give its vision tower too: mmproj-*.gguf in the same \
         folder, or --mmproj FILE"
    )]
    TextOnly,
    /// An image that the vision tower cannot cut into patches.
    #[error("image {image_idx}: {source}")]
    Patches {
        /// Place in the list of images, from 0.
        image_idx: usize,
        /// Why.
        source: PatchError,
    },
    /// A tile whose patches do not divide into the squares that become one vector.
    #[error(
        "image {image_idx} has {rows}x{cols} patches, which `scale_factor` {scale_factor} does not divide; have the \
         processor make tiles of the size that the model reads (`max_image_size`)"
    )]
    PixelShuffle {
        /// Place in the list of images, from 0.
        image_idx: usize,
        /// Rows of patches.
        rows: usize,
        /// Columns of patches.
        cols: usize,
        /// Patches on each side of a square.
        scale_factor: usize,
    },
    /// An image of another size than the vision tower has positions for.
    #[error(
        "image {image_idx} is {width}x{height} pixels, the model reads squares of {expected}; have the processor resize it \
         (`size`), or the model interpolate its positions"
    )]
    ImageSize {
        /// Place in the list of images, from 0.
        image_idx: usize,
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
        /// In pixels.
        expected: usize,
    },
    /// The prompt shows another number of images than there are.
    #[error("the prompt shows {shown} images, {images} are given")]
    ImageCount {
        /// Images that tokens of the prompt see or could see.
        shown: usize,
        /// Images.
        images: usize,
    },
    /// A token that sees an image which its row does not have, or a mask of another shape than the ids.
    #[error("row {row}: the image attention mask does not fit the row's tokens and images")]
    SeenImages {
        /// Row of the batch, from 0.
        row: usize,
    },
    /// An attention mask with a hole, or of another shape than the ids.
    #[error("row {row}: the attention mask is not padding on the left followed by ones, one value an id")]
    Padding {
        /// Row of the batch, from 0.
        row: usize,
    },
}

/// The token ids of a batch, rows padded on the left to the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    input_ids: Vec<u32>,
    left_padding: Vec<usize>,
    seq: usize,
    seen_images: Option<SeenImages>,
}

/// Which images of its row each token sees, for models that read images beside the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenImages {
    /// Images that each row brings.
    n_images: Vec<usize>,
    /// A part is an image: first those that a cache knows already, then those that come.
    view: ContextView,
}

impl SeenImages {
    /// Rows of `n_images` images each; `seen` is `[batch, seq, max_images]` with the largest of these numbers last,
    /// true where a token may attend to an image.
    ///
    /// # Errors
    /// [`InputError::SeenImages`] for a token that sees an image which its row does not have, or another length.
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

    /// Images that each row brings.
    pub fn n_images(&self) -> &[usize] {
        &self.n_images
    }

    /// What each token sees; a part is an image.
    pub fn view(&self) -> &ContextView {
        &self.view
    }
}

impl Prompts {
    /// Pads rows of ids on the left with `pad_token_id`.
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

    /// Takes rows that are padded already: `input_ids` and `attention_mask` are `[batch, seq]`, row after row, the
    /// mask true on real tokens.
    ///
    /// # Errors
    /// [`InputError::Padding`] for padding anywhere but on the left, [`InputError::Empty`].
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

    /// Says which images each token sees.
    ///
    /// # Errors
    /// [`InputError::SeenImages`] if it is of other rows or tokens.
    pub fn with_seen_images(mut self, seen_images: SeenImages) -> Result<Self, InputError> {
        if (seen_images.view.batch(), seen_images.view.n_new()) != (self.batch(), self.seq) {
            return Err(InputError::SeenImages { row: 0 });
        }
        self.seen_images = Some(seen_images);
        Ok(self)
    }

    /// Each token sees the latest image before it, and none after an end token: see [`latest_images`].
    #[must_use]
    pub fn seeing_latest_images(self, image_token_id: u32, eos_token_id: Option<u32>) -> Self {
        let latest = |row| latest_images(self.row(row), image_token_id, eos_token_id);
        let latest = (0..self.batch()).flat_map(latest).collect();
        self.seeing(image_token_id, latest)
    }

    /// As [`Self::seeing_latest_images`] for rows that branch: `parents`, `[batch · seq]`, has the slot of its row that
    /// each slot follows.
    #[must_use]
    pub fn seeing_latest_images_behind(
        self,
        parents: &[Option<usize>],
        image_token_id: u32,
        eos_token_id: Option<u32>,
    ) -> Self {
        let latest = |(row, parents)| latest_images_behind(self.row(row), parents, image_token_id, eos_token_id);
        let latest = parents.chunks(self.seq).enumerate().flat_map(latest).collect();
        self.seeing(image_token_id, latest)
    }

    /// `latest` has for each slot the image that it sees.
    fn seeing(mut self, image_token_id: u32, latest: Vec<Option<usize>>) -> Self {
        let count = |row| self.row(row).iter().filter(|&&id| id == image_token_id).count();
        let n_images: Vec<usize> = (0..self.batch()).map(count).collect();
        let max_images = n_images.iter().copied().max().unwrap_or(0);
        let images = |latest: Option<usize>| (0..max_images).map(move |image| latest == Some(image));
        let seen = latest.into_iter().flat_map(images).collect();
        let view = ContextView::new(self.batch(), self.seq, max_images, seen);
        self.seen_images = Some(SeenImages { n_images, view });
        self
    }

    /// Which images each token sees, if it was said.
    pub fn seen_images(&self) -> Option<&SeenImages> {
        self.seen_images.as_ref()
    }

    /// What is left of one row when a cache has its first `len` tokens and the first `n_images` of its images.
    ///
    /// # Panics
    /// If there are several rows, or fewer tokens or images.
    #[must_use]
    pub fn behind(&self, len: usize, n_images: usize) -> Self {
        assert_eq!(self.batch(), 1, "what a cache has is of one row");
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

    /// Rows.
    pub fn batch(&self) -> usize {
        self.left_padding.len()
    }

    /// Tokens of the longest row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Padded slots at the start of each row.
    pub fn left_padding(&self) -> &[usize] {
        &self.left_padding
    }

    /// A row with its padding.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.input_ids[row * self.seq..(row + 1) * self.seq]
    }

    /// All ids, `[batch · seq]`.
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// Real tokens, over all rows.
    pub fn real_tokens(&self) -> impl Iterator<Item = u32> {
        (0..self.batch()).flat_map(|row| self.row(row)[self.left_padding[row]..].iter().copied())
    }

    /// Uploads the ids, `[batch, seq]`, if the model has an embedding for each.
    ///
    /// # Errors
    /// [`InputError::TokenId`].
    pub fn upload(&self, vocab_size: usize, device: &Device) -> Result<Tensor<2, Int>, InputError> {
        upload_ids(&self.input_ids, [self.batch(), self.seq], vocab_size, device)
    }

    /// For each slot the row to read from `[text vectors; image vectors]`: its own text vector, or at an image token
    /// the next image vector. `None` if there are no images.
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

/// Uploads ids of a `[batch, seq]` block, each checked against the embedding table: GPU backends do not check.
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

/// Whether the ids of rows of `seq` are in the embedding table.
pub(crate) fn check_ids(ids: &[u32], seq: usize, vocab_size: usize) -> Result<(), InputError> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(slot) => Err(InputError::TokenId { row: slot / seq, id: ids[slot], vocab_size }),
    }
}
