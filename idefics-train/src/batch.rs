//! Inputs and labels of a micro-batch.

use burn::tensor::Tensor;
use idefics_generate::{InputError, Prompts};
use idefics_nn::KvCache;
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, DecoderStack, Positions};

use crate::labels::{IGNORED_LABEL, NextTokens};
use crate::{BatchError, LabelRecipe};

/// Rows that are processed together.
#[derive(Debug, Clone)]
pub struct TrainingBatch {
    /// Token ids, `[batch, seq]`.
    pub prompts: Prompts,
    /// Image tiles of all rows, in order.
    pub images: Vec<ImageTile>,
    /// Labels, `[batch · seq]`: slot `t − 1` is trained to predict the label of slot `t`. A label of −100 is ignored.
    pub labels: Vec<i64>,
    /// Which labels are ignored besides −100.
    pub recipe: LabelRecipe,
    /// For rows that branch, the parent of each slot, `[batch · seq]`: the slot of the same row that this slot follows.
    /// The inner option is `None` for slots without a parent. The label of slot `t` is then predicted by the parent of
    /// `t` instead of slot `t − 1`. Rows that branch are padded on the right. The whole list is `None` if no row
    /// branches.
    pub parents: Option<Vec<Option<usize>>>,
}

/// A text to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledText {
    /// Token ids, including image tokens.
    pub ids: Vec<u32>,
    /// One label per token: the token id if it is to be learned, −100 if it is only input.
    pub labels: Vec<i64>,
}

impl TrainingBatch {
    /// Creates a batch with one row per text, padded on the left. `images` has the tiles of all texts, in order.
    ///
    /// # Errors
    /// [`InputError::Empty`] if there are no texts or one of them has no tokens, [`BatchError::TextLabels`].
    pub fn padded(
        texts: &[LabelledText],
        images: Vec<ImageTile>,
        recipe: LabelRecipe,
        pad_token_id: u32,
    ) -> Result<Self, BatchError> {
        check_labels(texts)?;
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| text.ids.clone()).collect();
        let prompts = Prompts::pad_left(&ids, pad_token_id)?;
        let padded = prompts.left_padding().iter().zip(texts);
        let labels = padded.flat_map(|(&padding, text)| {
            std::iter::repeat_n(IGNORED_LABEL, padding).chain(text.labels.iter().copied())
        });
        Ok(Self { labels: labels.collect(), images, recipe, parents: None, prompts })
    }

    /// Creates a batch in which texts with a common prefix share a row, so that the prefix is computed once. Several
    /// questions about the same images are an example. The gradients are the same as with one row per text.
    ///
    /// `rows` has the texts of each row. `images` has the tiles of each row only once. All texts of a row must
    /// therefore contain the same images, and must not diverge before the last image. Only tokens with label −100 are
    /// shared.
    ///
    /// # Errors
    /// [`InputError::Empty`] if a row has no texts or no tokens, [`BatchError::TextLabels`].
    pub fn branching(
        rows: &[Vec<LabelledText>],
        images: Vec<ImageTile>,
        recipe: LabelRecipe,
        pad_token_id: u32,
    ) -> Result<Self, BatchError> {
        check_labels(rows.iter().flatten())?;
        let mut trees: Vec<Tree> = rows.iter().map(|texts| Tree::from_texts(texts)).collect();
        let seq = trees.iter().map(|tree| tree.ids.len()).max().unwrap_or(0);
        if let Some(row) = trees.iter().position(|tree| tree.ids.is_empty()) {
            return Err(InputError::Empty { row }.into());
        }
        for tree in &mut trees {
            // Pads on the right, where no other token sees the padding.
            for slot in tree.ids.len()..seq {
                tree.push(pad_token_id, IGNORED_LABEL, Some(slot - 1));
            }
        }
        let ids = trees.iter().flat_map(|tree| tree.ids.iter().copied()).collect();
        Ok(Self {
            prompts: Prompts::from_padded(ids, &vec![true; trees.len() * seq], seq)?,
            images,
            labels: trees.iter().flat_map(|tree| tree.labels.iter().copied()).collect(),
            recipe,
            parents: Some(trees.into_iter().flat_map(|tree| tree.parents).collect()),
        })
    }

    /// Lets each token see the latest image that precedes it in its text, unless an end token lies between them. Models
    /// with cross-attention to images need this. See [`Prompts::attend_to_latest_images`].
    ///
    /// # Errors
    /// [`BatchError::ParentCount`], [`BatchError::Parent`] and [`BatchError::LeftPadding`].
    pub fn attend_to_latest_images(
        mut self,
        image_token_id: u32,
        eos_token_id: Option<u32>,
    ) -> Result<Self, BatchError> {
        self.check_parents()?;
        self.prompts = match &self.parents {
            None => self.prompts.attend_to_latest_images(image_token_id, eos_token_id),
            Some(parents) => self.prompts.attend_to_latest_images_in_branches(parents, image_token_id, eos_token_id),
        };
        Ok(self)
    }

    /// Returns the tokens to be predicted. Labels equal to −100 or `ignored` do not count.
    ///
    /// # Errors
    /// [`BatchError`] if labels or parents do not fit the prompts, or a label that counts is not less than
    /// `vocab_size`.
    pub(crate) fn targets(&self, ignored: i64, vocab_size: usize) -> Result<NextTokens, BatchError> {
        let (slots, seq) = (self.n_slots(), self.prompts.seq());
        if self.labels.len() != slots {
            return Err(BatchError::LabelCount { slots, labels: self.labels.len() });
        }
        self.check_parents()?;
        NextTokens::new(&self.labels, seq, ignored, vocab_size, |row, slot| match &self.parents {
            None => slot.checked_sub(1),
            Some(parents) => parents[row * seq + slot],
        })
    }

    /// Checks the parents, if there are any: one entry per slot, each parent before its slot, and no row padded on the
    /// left.
    fn check_parents(&self) -> Result<(), BatchError> {
        let Some(parents) = &self.parents else { return Ok(()) };
        let (slots, seq) = (self.n_slots(), self.prompts.seq());
        if parents.len() != slots {
            return Err(BatchError::ParentCount { slots, parents: parents.len() });
        }
        if let Some(row) = self.prompts.left_padding().iter().position(|&padding| padding > 0) {
            return Err(BatchError::LeftPadding { row });
        }
        for (index, parent) in parents.iter().enumerate() {
            let (row, slot) = (index / seq, index % seq);
            if let Some(parent) = parent.filter(|&parent| parent >= slot) {
                return Err(BatchError::Parent { row, slot, parent });
            }
        }
        Ok(())
    }

    /// Returns the number of rows times the number of slots in a row.
    fn n_slots(&self) -> usize {
        self.prompts.batch() * self.prompts.seq()
    }

    /// Computes the positions and masks of the tokens of `inputs_embeds`, `[batch, seq, d]`.
    pub(crate) fn positions(
        &self,
        decoder: &dyn DecoderStack,
        inputs_embeds: &Tensor<3>,
        cache: &KvCache,
    ) -> Positions {
        match self.branches(cache) {
            None => decoder.positions(inputs_embeds, cache),
            Some(branches) => decoder.branch_positions(inputs_embeds, &branches, cache),
        }
    }

    /// Returns the token trees of the rows, or `None` if no row branches. The trees start after an empty prompt, so
    /// `cache` must be empty.
    pub(crate) fn branches(&self, cache: &KvCache) -> Option<Branches> {
        let parents = self.parents.as_ref()?;
        let mut branches = Branches::new(cache);
        branches.append(parents);
        Some(branches)
    }
}

/// Checks that every token of `texts` has a label.
fn check_labels<'a>(texts: impl IntoIterator<Item = &'a LabelledText>) -> Result<(), BatchError> {
    for (text, LabelledText { ids, labels }) in texts.into_iter().enumerate() {
        if ids.len() != labels.len() {
            return Err(BatchError::TextLabels { text, tokens: ids.len(), labels: labels.len() });
        }
    }
    Ok(())
}

/// The prefix tree of the texts of one row. A token shared by several texts occurs once.
#[derive(Debug, Default)]
struct Tree {
    ids: Vec<u32>,
    labels: Vec<i64>,
    parents: Vec<Option<usize>>,
}

impl Tree {
    fn from_texts(texts: &[LabelledText]) -> Self {
        let mut tree = Self::default();
        for LabelledText { ids, labels } in texts {
            let mut last = None;
            for (&id, &label) in ids.iter().zip(labels) {
                last = Some(match tree.child(last, id).filter(|_| label == IGNORED_LABEL) {
                    Some(shared) => shared,
                    None => tree.push(id, label, last),
                });
            }
        }
        tree
    }

    /// Returns the slot after `parent` that has this id and label −100, if there is one.
    fn child(&self, parent: Option<usize>, id: u32) -> Option<usize> {
        let first = parent.map_or(0, |parent| parent + 1);
        (first..self.ids.len())
            .find(|&slot| self.parents[slot] == parent && self.ids[slot] == id && self.labels[slot] == IGNORED_LABEL)
    }

    fn push(&mut self, id: u32, label: i64, parent: Option<usize>) -> usize {
        self.ids.push(id);
        self.labels.push(label);
        self.parents.push(parent);
        self.ids.len() - 1
    }
}
