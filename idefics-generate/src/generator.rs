//! The generation loop: one [`Generation`] is one batch of rows that grow a token at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Bool, DType, IntDType, Tensor, TensorData, Transaction};
use idefics_nn::KvCache;
use serde::Serialize;

use crate::generation_config::Settings;
use crate::{Error, GenerationConfig, Idefics2, Prompts};

/// Why a row stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FinishReason {
    /// An end token.
    Stop,
    /// The length limit.
    Length,
    /// [`CancelToken::cancel`].
    Cancelled,
}

/// Ends a generation from elsewhere, within one step.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks the generation to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A batch that is being generated greedily. Dropping it ends it.
#[derive(Debug)]
pub struct Generation<'a> {
    model: &'a Idefics2,
    settings: Settings,
    /// Each row's slots: padding, prompt, what was generated.
    sequences: Vec<Vec<u32>>,
    prompt_len: usize,
    finished: Vec<Option<FinishReason>>,
    cache: KvCache,
    /// Logits of the next token, `[batch, vocab_size]`, until it is chosen.
    logits: Option<Tensor<2>>,
    /// True for tokens that are never allowed, `[1, vocab_size]`.
    forbidden: Option<Tensor<2, Bool>>,
    cancel: CancelToken,
}

impl<'a> Generation<'a> {
    /// Runs the prompts. `image_hidden_states` is [`Idefics2::encode_images`] of all their images, row after row.
    ///
    /// # Errors
    /// [`Error::Generation`] for options that cannot be followed, [`Error::Input`] for prompts that do not fit.
    pub fn start(
        model: &'a Idefics2,
        prompts: &Prompts,
        image_hidden_states: Option<Tensor<3>>,
        options: &GenerationConfig,
        cancel: CancelToken,
    ) -> Result<Self, Error> {
        let vocab_size = model.config().text_config.vocab_size;
        let settings = options.settle(prompts.seq(), vocab_size)?;
        // The last token is never read back in.
        let mut cache = model.cache(prompts, settings.max_length - prompts.seq() - 1);
        let logits = model.prefill(prompts, image_hidden_states, &mut cache)?;

        let single: Vec<u32> =
            settings.bad_words_ids.iter().filter(|word| word.len() == 1).map(|word| word[0]).collect();
        let forbidden = (!single.is_empty()).then(|| {
            let row: Vec<bool> = (0..vocab_size).map(|id| single.contains(&(id as u32))).collect();
            Tensor::from_data(TensorData::new(row, [1, vocab_size]), &logits.device())
        });
        Ok(Self {
            model,
            settings,
            sequences: (0..prompts.batch()).map(|row| prompts.row(row).to_vec()).collect(),
            prompt_len: prompts.seq(),
            finished: vec![None; prompts.batch()],
            cache,
            logits: Some(logits),
            forbidden,
            cancel,
        })
    }

    /// Generates one more token of each row, the pad token in rows that have finished; `None` when all have.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::NoAllowedToken`], [`Error::Execution`].
    pub fn step(&mut self) -> Result<Option<Vec<u32>>, Error> {
        if self.cancel.is_cancelled() {
            for finished in &mut self.finished {
                finished.get_or_insert(FinishReason::Cancelled);
            }
        }
        if self.finished.iter().all(Option::is_some) {
            return Ok(None);
        }
        let logits = match self.logits.take() {
            Some(logits) => logits,
            None => {
                let last: Vec<u32> = self.sequences.iter().map(|row| row[row.len() - 1]).collect();
                self.model.decode(&last, &mut self.cache)?
            }
        };
        let mut next_tokens = self.choose(logits)?;
        for (row, next_token) in next_tokens.iter_mut().enumerate() {
            if self.finished[row].is_some() {
                *next_token = self.settings.pad_token_id;
            }
            self.sequences[row].push(*next_token);
            if self.finished[row].is_none() && self.settings.eos_token_ids.contains(next_token) {
                self.finished[row] = Some(FinishReason::Stop);
            }
        }
        if self.sequences[0].len() >= self.settings.max_length {
            for finished in &mut self.finished {
                finished.get_or_insert(FinishReason::Length);
            }
        }
        Ok(Some(next_tokens))
    }

    /// The likeliest allowed token of each row, `[batch, vocab_size]` in; the lowest id among equals.
    fn choose(&self, logits: Tensor<2>) -> Result<Vec<u32>, Error> {
        let [batch, _] = logits.dims();
        let check = logits.clone().sum_dim(1); // [batch, 1]: NaN and infinity stay what they are
        let mut scores = logits;
        if let Some(forbidden) = &self.forbidden {
            let forbidden = forbidden.clone().expand(scores.dims());
            scores = scores.mask_fill(forbidden, f64::NEG_INFINITY);
        }
        if let Some(forbidden) = self.forbidden_now(scores.dims()) {
            let forbidden = Tensor::<2, Bool>::from_data(forbidden, &scores.device());
            scores = scores.mask_fill(forbidden, f64::NEG_INFINITY);
        }
        let (best, ids) = scores.max_dim_with_indices(1); // [batch, 1] each
        let ids = ids.cast(IntDType::I32);

        let failed = |reason: String| Error::Execution { reason };
        let read = Transaction::default().register(check).register(best).register(ids).try_execute();
        let [check, best, ids]: [TensorData; 3] = read
            .map_err(|error| failed(format!("{error:?}")))?
            .try_into()
            .map_err(|_| failed("a read returned another number of tensors".to_owned()))?;
        let floats = |data: TensorData| data.convert_dtype(DType::F32).try_into_vec::<f32>();
        let check = floats(check).map_err(|error| failed(format!("{error:?}")))?;
        let best = floats(best).map_err(|error| failed(format!("{error:?}")))?;
        let ids = ids.try_into_vec::<i32>().map_err(|error| failed(format!("{error:?}")))?;
        for row in (0..batch).filter(|&row| self.finished[row].is_none()) {
            if !check[row].is_finite() {
                return Err(Error::NonFinite { row, n_tokens: self.sequences[row].len() - self.prompt_len });
            }
            if best[row] == f32::NEG_INFINITY {
                return Err(Error::NoAllowedToken { row });
            }
        }
        Ok(ids.into_iter().map(|id| id as u32).collect())
    }

    /// Tokens that would complete a forbidden sequence now, `[batch, vocab_size]`.
    fn forbidden_now(&self, [batch, vocab_size]: [usize; 2]) -> Option<TensorData> {
        let completing: Vec<(usize, u32)> = (0..batch)
            .flat_map(|row| {
                self.settings.bad_words_ids.iter().filter_map(move |word| match word.split_last() {
                    Some((&last, begin)) if !begin.is_empty() && self.sequences[row].ends_with(begin) => {
                        Some((row, last))
                    }
                    _ => None,
                })
            })
            .collect();
        if completing.is_empty() {
            return None;
        }
        let mut forbidden = vec![false; batch * vocab_size];
        for (row, id) in completing {
            forbidden[row * vocab_size + id as usize] = true;
        }
        Some(TensorData::new(forbidden, [batch, vocab_size]))
    }

    /// Each row with padding, prompt, what was generated, and the pad token after its end: what the reference's
    /// `generate` returns.
    pub fn sequences(&self) -> &[Vec<u32>] {
        &self.sequences
    }

    /// What was generated in a row, its end token included.
    pub fn generated(&self, row: usize) -> &[u32] {
        let generated = &self.sequences[row][self.prompt_len..];
        let end = generated.iter().position(|id| self.settings.eos_token_ids.contains(id));
        &generated[..end.map_or(generated.len(), |end| end + 1)]
    }

    /// Why a row stopped, once it has.
    pub fn finish_reason(&self, row: usize) -> Option<FinishReason> {
        self.finished[row]
    }
}
