//! Ranks given answers by their likelihood. The shared prompt is run only once.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData};
use idefics_nn::KvCache;
use idefics_processor::image::ImageTile;
use idefics_processor::{MessageContent, ProcessOptions, PromptPart, Sample};
use idefics_text::Branches;
use rayon::prelude::*;
use serde::Serialize;

use crate::generation::logprobs;
use crate::pipeline::milliseconds;
use crate::{CancelToken, Error, Idefics, ImageVectors, InputError, Model, Prompts, Timings};

/// How labels are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankOptions {
    /// Whether to divide the log-likelihood of a label by its number of tokens, so that long labels are not at a
    /// disadvantage.
    pub normalize_length: bool,
    /// Whether to subtract the log-likelihood of the label after the same prompt without images. The score then
    /// measures what the image says, not how common the words are.
    pub calibrate: bool,
}

/// A label and its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RankedLabel {
    /// The label.
    pub label: String,
    /// Probability of this label among all labels: softmax of the scores.
    pub probability: f64,
    /// The score by which labels are ordered: the log-likelihood, calibrated and divided by the length if the options
    /// say so.
    pub score: f64,
    /// Natural logarithm of the label's probability after the prompt.
    pub log_likelihood: f64,
    /// Number of tokens of the label.
    pub tokens: usize,
}

/// The result of a ranking.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Ranking {
    /// All labels, the most likely first.
    pub labels: Vec<RankedLabel>,
    /// The prompt text, image tokens included.
    pub prompt: String,
    /// Time of each stage. The labels count as part of `prefill_ms`. A calibration adds its time to the stages that it
    /// runs.
    pub timings: Timings,
}

/// The log-likelihoods of labels after one prompt.
struct Likelihoods {
    /// The prompt's text.
    prompt: String,
    /// Log-likelihood and number of tokens of each label.
    scored: Vec<(f64, usize)>,
    timings: Timings,
}

/// Maximum number of tokens of a group of answers that are run together. A single answer may have more. The attention
/// mask covers all pairs of tokens in a group, so larger groups would take longer than several small ones.
const GROUP: usize = 96;

/// A trie of answers, so that common prefixes are computed only once.
#[derive(Debug, Default)]
struct Trie {
    /// Token and parent of each node. The parent is `None` for the first token of an answer.
    nodes: Vec<(u32, Option<usize>)>,
    /// The nodes of each answer, from the first token to the last.
    paths: Vec<Vec<usize>>,
    /// Index of each node in `read`. It is `None` for nodes without children: their tokens are predicted, but never fed
    /// to the model.
    places: Vec<Option<usize>>,
    /// The tokens that are fed to the model, each with the index in `read` of the token that it follows.
    read: Vec<(u32, Option<usize>)>,
}

impl Trie {
    fn new<'t>(answers: impl Iterator<Item = &'t [u32]>) -> Self {
        let mut trie = Self::default();
        let mut known = HashMap::new();
        for answer in answers {
            let mut path: Vec<usize> = Vec::with_capacity(answer.len());
            for &id in answer {
                let node = (id, path.last().copied());
                path.push(*known.entry(node).or_insert_with(|| {
                    trie.nodes.push(node);
                    trie.nodes.len() - 1
                }));
            }
            trie.paths.push(path);
        }
        let mut is_read = vec![false; trie.nodes.len()];
        trie.nodes.iter().filter_map(|&(_, parent)| parent).for_each(|parent| is_read[parent] = true);
        trie.places = vec![None; trie.nodes.len()];
        for (node, &(id, parent)) in trie.nodes.iter().enumerate().filter(|(node, _)| is_read[*node]) {
            trie.places[node] = Some(trie.read.len());
            trie.read.push((id, parent.and_then(|parent| trie.places[parent])));
        }
        trie
    }

    /// Returns, for each node, the index of the hidden state that predicts it. Index 0 is the last token of the prompt;
    /// index `i + 1` is token `i` of `read`.
    fn predictors(&self) -> Vec<i32> {
        let place = |parent: Option<usize>| parent.and_then(|parent| self.places[parent]);
        self.nodes.iter().map(|&(_, parent)| place(parent).map_or(0, |place| place as i32 + 1)).collect()
    }
}

/// Divides the answers into groups that are run together. Each group lists the indices of its answers, in the order of
/// their tokens, so that answers with a common prefix are adjacent.
fn groups(answers: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..answers.len()).collect();
    order.sort_by_key(|&index| &answers[index]);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut n_read = usize::MAX;
    for index in order {
        let more = answers[index].len().saturating_sub(1);
        if n_read.saturating_add(more) > GROUP {
            groups.push(Vec::new());
            n_read = 0;
        }
        n_read += more;
        groups.last_mut().expect("the first answer creates a group").push(index);
    }
    groups
}

impl dyn Model + '_ {
    /// Computes the log-likelihood of each answer after one prompt. The prompt is run only once. The log-likelihood of
    /// an answer without tokens is 0.
    ///
    /// # Errors
    /// [`Error::Input`] if an id is outside the vocabulary, [`Error::Execution`], [`Error::NonFinite`].
    ///
    /// # Panics
    /// If there is not exactly one prompt.
    pub fn log_likelihoods(
        &self,
        prompt: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        answers: &[Vec<u32>],
    ) -> Result<Vec<f64>, Error> {
        self.log_likelihoods_until(prompt, image_hidden_states, answers, &CancelToken::default())
    }

    /// Computes the same as [`Self::log_likelihoods`]. `cancel` stops it with [`Error::Cancelled`] before the prompt or
    /// between groups of answers.
    pub(crate) fn log_likelihoods_until(
        &self,
        prompt: &Prompts,
        image_hidden_states: Option<ImageVectors>,
        answers: &[Vec<u32>],
        cancel: &CancelToken,
    ) -> Result<Vec<f64>, Error> {
        assert_eq!(prompt.batch(), 1, "ranking needs exactly one prompt");
        let vocab_size = self.shape().vocab_size;
        if let Some(&id) = answers.iter().flatten().find(|&&id| id as usize >= vocab_size) {
            return Err(InputError::TokenId { row: 0, id, vocab_size }.into());
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        cancel.check()?;
        let mut cache = self.cache(prompt, longest.max(GROUP));
        let states = self.hidden_states(prompt, image_hidden_states, &mut cache)?;
        let [_, seq, d] = states.dims();
        let last = states.narrow(1, seq - 1, 1).reshape([1, d]); // predicts the first token of each answer
        let mut scores = vec![0.0; answers.len()];
        for group in groups(answers) {
            cancel.check()?;
            cache.truncate(seq);
            let trie = Trie::new(group.iter().map(|&index| answers[index].as_slice()));
            let logprobs = self.node_logprobs(last.clone(), &trie, &mut cache)?;
            for (&index, path) in group.iter().zip(&trie.paths) {
                scores[index] = path.iter().map(|&node| f64::from(logprobs[node])).sum();
            }
        }
        match scores.iter().position(|score| score.is_nan()) {
            Some(answer) => Err(Error::NonFinite { row: 0, n_tokens: answers[answer].len() }),
            None => Ok(scores),
        }
    }

    /// Computes the log-probability of each node. `last` is the hidden state of the prompt's last token, `[1, d]`.
    fn node_logprobs(&self, last: Tensor<2>, trie: &Trie, cache: &mut KvCache) -> Result<Vec<f32>, Error> {
        if trie.nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut states = last;
        if !trie.read.is_empty() {
            let (ids, parents): (Vec<u32>, Vec<Option<usize>>) = trie.read.iter().copied().unzip();
            let mut branches = Branches::new(cache);
            branches.append(&parents);
            let behind: Tensor<2> = self.branch_states(&ids, &branches, cache)?.squeeze_dim(0); // [n_read, d]
            states = Tensor::cat(vec![states, behind], 0);
        }
        let predictors = TensorData::from(trie.predictors().as_slice());
        let predictors = Tensor::from_data(predictors, (&states.device(), DType::I32));
        let targets: Vec<u32> = trie.nodes.iter().map(|&(id, _)| id).collect();
        logprobs::of_tokens(self, states.select(0, predictors), &targets)
    }
}

impl Idefics {
    /// Ranks `labels` as answers to a sample. White space around a label is removed. A space is put between prompt and
    /// label, unless the prompt ends in white space. Special tokens in labels are treated as ordinary text.
    ///
    /// # Errors
    /// Those of [`Idefics::generate`]; [`Error::NoLabels`], [`Error::SameLabel`], [`Error::Cancelled`].
    pub fn rank(
        &self,
        sample: &Sample,
        labels: &[String],
        process: &ProcessOptions,
        options: RankOptions,
        cancel: &CancelToken,
    ) -> Result<Ranking, Error> {
        let labels: Vec<&str> = labels.iter().map(|label| label.trim()).collect();
        if labels.is_empty() || labels.contains(&"") {
            return Err(Error::NoLabels);
        }
        let mut seen = HashSet::new();
        if let Some(label) = labels.iter().find(|label| !seen.insert(**label)) {
            return Err(Error::SameLabel { label: (*label).to_owned() });
        }
        let Likelihoods { prompt, scored, mut timings } = self.likelihoods(sample, &labels, process, cancel)?;
        let mut base = vec![(0.0, 1); labels.len()];
        if options.calibrate {
            let without = self.likelihoods(&without_images(sample), &labels, process, cancel)?;
            base = without.scored;
            timings += without.timings;
        }
        let scores: Vec<f64> = scored
            .iter()
            .zip(&base)
            .map(|(&(log_likelihood, tokens), &(base, _))| {
                (log_likelihood - base) / if options.normalize_length { tokens.max(1) as f64 } else { 1.0 }
            })
            .collect();
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - best).exp()).sum();
        let mut ranked: Vec<RankedLabel> = labels
            .iter()
            .zip(scored)
            .zip(&scores)
            .map(|((label, (log_likelihood, tokens)), &score)| RankedLabel {
                label: (*label).to_owned(),
                probability: (score - best).exp() / total,
                score,
                log_likelihood,
                tokens,
            })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(Ranking { labels: ranked, prompt, timings })
    }

    fn likelihoods(
        &self,
        sample: &Sample,
        labels: &[&str],
        process: &ProcessOptions,
        cancel: &CancelToken,
    ) -> Result<Likelihoods, Error> {
        let mut timings = Timings::default();
        let clock = Instant::now();
        let mut processed = self.process(std::slice::from_ref(sample), process)?;
        let (prompt, mut prompt_ids) = (processed.prompts.remove(0), processed.input_ids.remove(0));
        let tokenizer = self.processor().tokenizer_for(process.compatibility);
        let alone = tokenizer.encode(&prompt, true)?;
        let space = if prompt.is_empty() || prompt.ends_with(char::is_whitespace) { "" } else { " " };
        let answers = labels
            .par_iter()
            .map(|label| tokenizer.encode_with_literal_text(&format!("{prompt}{space}"), label))
            .collect::<Result<Vec<_>, _>>()?;
        // The tokenizer may merge the beginning of a label with the prompt's last token. Therefore only the tokens that
        // all answers share count as the prompt.
        let common = answers.iter().map(|answer| common_prefix(&alone, answer)).min().unwrap_or(0);
        prompt_ids.truncate((prompt_ids.len() + common).saturating_sub(alone.len()).max(1));
        let answers: Vec<Vec<u32>> = answers.into_iter().map(|answer| answer[common..].to_vec()).collect();
        let prompts = self.prompts(&[prompt_ids], tokenizer)?;
        timings.preprocess_ms = milliseconds(clock);

        let images: Vec<ImageTile> = processed.images.into_iter().flatten().collect();
        cancel.check()?;
        let image_hidden_states = self.encode_images(&images, &mut timings)?;
        let clock = Instant::now();
        let log_likelihoods = self.model().log_likelihoods_until(&prompts, image_hidden_states, &answers, cancel)?;
        timings.prefill_ms = milliseconds(clock);
        let scored = log_likelihoods.into_iter().zip(answers.iter().map(Vec::len)).collect();
        Ok(Likelihoods { prompt, scored, timings })
    }
}

/// Returns the length of the common prefix of two rows of tokens.
pub(crate) fn common_prefix(left: &[u32], right: &[u32]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// Returns the same prompt without images and videos.
fn without_images(sample: &Sample) -> Sample {
    match sample.clone() {
        Sample::Text { text, videos, .. } => {
            let text = text.replace("<image>", "");
            let text = if videos.is_empty() { text } else { text.replace("<video>", "") };
            Sample::Text { text, images: Vec::new(), videos: Vec::new() }
        }
        Sample::Messages(mut chat) => {
            for message in &mut chat.messages {
                if let MessageContent::Parts(parts) = &mut message.content {
                    parts.retain(|part| !part.is_image() && !part.is_video());
                }
            }
            chat.images.clear();
            chat.videos.clear();
            chat.into()
        }
        Sample::Prompt(mut parts) => {
            parts.retain(|part| matches!(part, PromptPart::Text(_)));
            Sample::Prompt(parts)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefixes_share_nodes() {
        let answers = [vec![5, 6], vec![5, 7, 8], vec![9], vec![], vec![5, 6]];
        let trie = Trie::new(answers.iter().map(Vec::as_slice));
        assert_eq!(trie.nodes, [(5, None), (6, Some(0)), (7, Some(0)), (8, Some(2)), (9, None)]);
        assert_eq!(trie.paths, [vec![0, 1], vec![0, 2, 3], vec![4], vec![], vec![0, 1]]);
        assert_eq!(trie.read, [(5, None), (7, Some(0))]);
        assert_eq!(trie.predictors(), [0, 1, 1, 2, 0]);
    }

    #[test]
    fn groups_cover_all_answers_within_token_limit() {
        let answers: Vec<Vec<u32>> =
            (0..300_u32).map(|index| vec![index % 7; index as usize % 40]).chain([vec![1; 500]]).collect();
        let groups = groups(&answers);
        let mut all: Vec<usize> = groups.concat();
        all.sort_unstable();
        assert_eq!(all, (0..301).collect::<Vec<_>>());
        let n_read =
            |group: &Vec<usize>| -> usize { group.iter().map(|&index| answers[index].len().saturating_sub(1)).sum() };
        assert!(groups.iter().all(|group| group.len() == 1 || n_read(group) <= GROUP));
        assert!(groups.len() < 100, "{} groups", groups.len());
    }
}
