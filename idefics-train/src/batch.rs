//! What one micro-batch shows the model and asks it to say.

use burn::tensor::Tensor;
use idefics_generate::{InputError, Prompts};
use idefics_nn::KvCache;
use idefics_processor::image::ImageTile;
use idefics_text::{Branches, DecoderStack, Places};

use crate::LabelRecipe;
use crate::labels::NextTokens;

/// Rows that go through the model together.
#[derive(Debug, Clone)]
pub struct TrainingBatch {
    /// The tokens.
    pub prompts: Prompts,
    /// The tiles of all rows in order.
    pub images: Vec<ImageTile>,
    /// `[batch · seq]`: the label of slot `t` is what slot `t − 1` should predict; −100 does not count.
    pub labels: Vec<i64>,
    /// Which labels count beside that.
    pub recipe: LabelRecipe,
    /// `[batch · seq]`: of rows that branch the slot of its row that each slot follows, `None` where it follows
    /// nothing. Slot `t − 1` in the text above is then that slot. `None`: each follows the one before.
    pub parents: Option<Vec<Option<usize>>>,
}

/// A text to learn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledText {
    /// The tokens, image tokens among them.
    pub ids: Vec<u32>,
    /// One for each: the token itself where it is to be learned, −100 where it is only read.
    pub labels: Vec<i64>,
}

impl TrainingBatch {
    /// A row for each text, padded on the left. `images` are the tiles of all texts in order.
    ///
    /// # Errors
    /// [`InputError::Empty`].
    ///
    /// # Panics
    /// If a text has not one label a token.
    pub fn padded(
        texts: &[LabelledText],
        images: Vec<ImageTile>,
        recipe: LabelRecipe,
        pad_token_id: u32,
    ) -> Result<Self, InputError> {
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| text.ids.clone()).collect();
        let prompts = Prompts::pad_left(&ids, pad_token_id)?;
        let padded = prompts.left_padding().iter().zip(texts);
        let labels = padded.flat_map(|(&padding, text)| {
            assert_eq!(text.ids.len(), text.labels.len(), "one label a token");
            std::iter::repeat_n(-100, padding).chain(text.labels.iter().copied())
        });
        Ok(Self { labels: labels.collect(), images, recipe, parents: None, prompts })
    }

    /// Texts that begin alike, computed once up to where they part: several questions about the same pictures, in one
    /// row. The gradients are those of a row for each text.
    ///
    /// `rows` are the texts of each row, `images` the tiles of each row once. All texts of a row are about all its
    /// pictures, and none of them parts from the others before the last picture. What is learned is not shared.
    ///
    /// # Errors
    /// [`InputError::Empty`] for a row without texts or tokens.
    ///
    /// # Panics
    /// If a text has not one label a token.
    pub fn branching(
        rows: &[Vec<LabelledText>],
        images: Vec<ImageTile>,
        recipe: LabelRecipe,
        pad_token_id: u32,
    ) -> Result<Self, InputError> {
        let mut trees: Vec<Tree> = rows.iter().map(|texts| Tree::of(texts)).collect();
        let seq = trees.iter().map(|tree| tree.ids.len()).max().unwrap_or(0);
        if let Some(row) = trees.iter().position(|tree| tree.ids.is_empty()) {
            return Err(InputError::Empty { row });
        }
        for tree in &mut trees {
            // Padding on the right, where nothing sees it.
            for slot in tree.ids.len()..seq {
                tree.push(pad_token_id, -100, Some(slot - 1));
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

    /// Says what each token sees in models that read images beside the text: the latest image before it in its text,
    /// and none after an end token; see [`Prompts::seeing_latest_images`].
    #[must_use]
    pub fn seeing_latest_images(mut self, image_token_id: u32, eos_token_id: Option<u32>) -> Self {
        self.prompts = match &self.parents {
            None => self.prompts.seeing_latest_images(image_token_id, eos_token_id),
            Some(parents) => self.prompts.seeing_latest_images_behind(parents, image_token_id, eos_token_id),
        };
        self
    }

    /// What is to be predicted: labels of −100 are not, nor `ignored`.
    pub(crate) fn targets(&self, ignored: i64) -> NextTokens {
        match &self.parents {
            None => NextTokens::new(&self.labels, self.prompts.seq(), ignored),
            Some(parents) => NextTokens::of_branches(&self.labels, parents, self.prompts.seq(), ignored),
        }
    }

    /// Where the tokens of `inputs_embeds`, `[batch, seq, d]`, stand and what they see.
    pub(crate) fn places(&self, decoder: &dyn DecoderStack, inputs_embeds: &Tensor<3>, cache: &KvCache) -> Places {
        match self.branches(cache) {
            None => decoder.places(inputs_embeds, cache),
            Some(branches) => decoder.branch_places(inputs_embeds, &branches, cache),
        }
    }

    /// Which token follows which behind an empty cache, if rows branch.
    pub(crate) fn branches(&self, cache: &KvCache) -> Option<Branches> {
        let parents = self.parents.as_ref()?;
        let mut branches = Branches::new(cache);
        branches.append(parents);
        Some(branches)
    }
}

/// The tokens of one row, each once however many texts go on from it.
#[derive(Debug, Default)]
struct Tree {
    ids: Vec<u32>,
    labels: Vec<i64>,
    parents: Vec<Option<usize>>,
}

impl Tree {
    fn of(texts: &[LabelledText]) -> Self {
        let mut tree = Self::default();
        for LabelledText { ids, labels } in texts {
            assert_eq!(ids.len(), labels.len(), "one label a token");
            let mut last = None;
            for (&id, &label) in ids.iter().zip(labels) {
                last = Some(match tree.child(last, id).filter(|_| label == -100) {
                    Some(shared) => shared,
                    None => tree.push(id, label, last),
                });
            }
        }
        tree
    }

    /// What follows `parent` with this id, and is only read.
    fn child(&self, parent: Option<usize>, id: u32) -> Option<usize> {
        let first = parent.map_or(0, |parent| parent + 1);
        (first..self.ids.len())
            .find(|&slot| self.parents[slot] == parent && self.ids[slot] == id && self.labels[slot] == -100)
    }

    fn push(&mut self, id: u32, label: i64, parent: Option<usize>) -> usize {
        self.ids.push(id);
        self.labels.push(label);
        self.parents.push(parent);
        self.ids.len() - 1
    }
}
