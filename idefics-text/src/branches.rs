//! Rows that branch after a shared prompt: beams, alternative answers, labels to be scored.
//!
//! All branches of a row append to the same sequence of cache slots. A token sees the prompt and only those later
//! tokens that are its own ancestors. The prompt is therefore computed and stored only once, and continuing from
//! another branch copies nothing.

use idefics_nn::KvCache;

/// The tree of tokens in each row: which token follows which.
///
/// The cache slots of a row are its prompt, padding included, followed by one slot per appended token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branches {
    left_padding: Vec<usize>,
    /// Length of the prompt in slots, padding included.
    prompt_len: usize,
    /// For each row, the tokens after the prompt.
    tokens: Vec<Vec<Token>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    /// Index of the preceding token among the tokens after the prompt. `None` if the prompt itself precedes this token.
    parent: Option<usize>,
    /// Number of ancestors after the prompt.
    depth: usize,
}

impl Branches {
    /// Creates the branches of rows that have not branched yet. `cache` contains their prompts.
    pub fn new(cache: &KvCache) -> Self {
        Self {
            left_padding: cache.left_padding().to_vec(),
            prompt_len: cache.len(),
            tokens: vec![Vec::new(); cache.batch()],
        }
    }

    /// Returns the number of rows.
    pub fn batch(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the number of slots in a row.
    pub fn n_slots(&self) -> usize {
        self.prompt_len + self.tokens.first().map_or(0, Vec::len)
    }

    /// Appends the same number of tokens to every row. `parents` has one entry per new token, `[batch · n_new]` row by
    /// row. An entry is the index of the token that the new token follows, counted after the prompt, or `None` if the
    /// new token follows the prompt.
    ///
    /// # Panics
    /// If the number of tokens is not a multiple of the number of rows, or a parent does not exist yet.
    pub fn append(&mut self, parents: &[Option<usize>]) {
        let n_new = parents.len() / self.batch().max(1);
        assert_eq!(n_new * self.batch(), parents.len(), "every row must get the same number of tokens");
        for (tokens, parents) in self.tokens.iter_mut().zip(parents.chunks(n_new.max(1))) {
            for &parent in parents {
                let depth = parent.map_or(0, |parent| tokens[parent].depth + 1);
                tokens.push(Token { parent, depth });
            }
        }
    }

    /// Returns the position ids of the last `n_new` tokens of each row, `[batch · n_new]`.
    pub(crate) fn positions(&self, n_new: usize) -> Vec<usize> {
        let rows = self.tokens.iter().zip(&self.left_padding);
        rows.flat_map(|(tokens, padding)| {
            let newest = &tokens[tokens.len() - n_new..];
            newest.iter().map(move |token| self.prompt_len + token.depth - padding)
        })
        .collect()
    }

    /// Returns the attention mask of the last `n_new` tokens of each row, `[batch, n_new, n_slots]`, true where a slot
    /// is hidden.
    ///
    /// The sliding window counts the slots that the branch of a token would have if this branch were the only one,
    /// padding included.
    pub(crate) fn mask(&self, n_new: usize, sliding_window: Option<usize>) -> Vec<bool> {
        let n_slots = self.n_slots();
        let mut mask = vec![true; self.batch() * n_new * n_slots];
        let mut queries = mask.chunks_mut(n_slots);
        for (tokens, &padding) in self.tokens.iter().zip(&self.left_padding) {
            for (newest, query) in (tokens.len() - n_new..tokens.len()).zip(queries.by_ref()) {
                let at = self.prompt_len + tokens[newest].depth; // slot of the token if its branch were the only one
                let first = sliding_window.map_or(0, |window| (at + 1).saturating_sub(window));
                if let Some(seen) = query.get_mut(first.max(padding)..self.prompt_len) {
                    seen.fill(false);
                }
                let mut ancestor = Some(newest);
                while let Some(index) = ancestor.filter(|&index| self.prompt_len + tokens[index].depth >= first) {
                    query[self.prompt_len + index] = false;
                    ancestor = tokens[index].parent;
                }
            }
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branches(left_padding: Vec<usize>, prompt_len: usize) -> Branches {
        let tokens = vec![Vec::new(); left_padding.len()];
        Branches { left_padding, prompt_len, tokens }
    }

    fn seen(branches: &Branches, n_new: usize, window: Option<usize>) -> Vec<Vec<usize>> {
        let mask = branches.mask(n_new, window);
        let queries = mask.chunks(branches.n_slots());
        queries.map(|query| (0..query.len()).filter(|&slot| !query[slot]).collect()).collect()
    }

    #[test]
    fn branch_sees_its_prompt_and_its_ancestors() {
        let mut branches = branches(vec![1], 3);
        branches.append(&[None, None]); // slots 3 and 4
        assert_eq!(branches.positions(2), [2, 2]);
        assert_eq!(seen(&branches, 2, None), [vec![1, 2, 3], vec![1, 2, 4]]);
        branches.append(&[Some(1), Some(1)]); // both continue from slot 4
        assert_eq!(branches.positions(2), [3, 3]);
        assert_eq!(seen(&branches, 2, None), [vec![1, 2, 4, 5], vec![1, 2, 4, 6]]);
        assert_eq!(seen(&branches, 2, Some(3)), [vec![2, 4, 5], vec![2, 4, 6]]);
        assert_eq!(seen(&branches, 2, Some(1)), [vec![5], vec![6]]);
    }

    #[test]
    fn rows_are_independent() {
        let mut branches = branches(vec![0, 2], 3);
        branches.append(&[None, Some(0), None, None]);
        assert_eq!(branches.positions(2), [3, 4, 1, 1]);
        assert_eq!(seen(&branches, 2, None), [vec![0, 1, 2, 3], vec![0, 1, 2, 3, 4], vec![2, 3], vec![2, 4]]);
    }
}
