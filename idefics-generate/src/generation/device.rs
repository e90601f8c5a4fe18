//! Greedy search on the device. Each step reads back only three numbers per row.

use burn::tensor::{Bool, DType, Device, IntDType, Tensor, TensorData, Transaction};

use super::Rows;
use crate::logits::RowError;
use crate::{Error, GenerationConfig};

/// Greedy search whose only logits processor is the one for `bad_words_ids`.
#[derive(Debug)]
pub(super) struct OnDevice {
    /// Forbidden sequences of two or more tokens.
    longer: Vec<Vec<u32>>,
    /// Mask of the tokens that are always forbidden, `[1, vocab_size]`: true means forbidden.
    forbidden: Option<Tensor<2, Bool>>,
}

impl OnDevice {
    pub(super) fn new(config: &GenerationConfig, vocab_size: usize, device: &Device) -> Self {
        let mut words = config.bad_words_ids.clone().unwrap_or_default();
        // A single end token cannot be forbidden. Source: `NoBadWordsLogitsProcessor`.
        words.retain(|word| !matches!(word.as_slice(), [id] if config.eos_token_ids().contains(id)));
        let (single, longer): (Vec<_>, Vec<_>) = words.into_iter().partition(|word| word.len() == 1);
        let forbidden = (!single.is_empty()).then(|| {
            let mut row = vec![false; vocab_size];
            single.iter().for_each(|word| row[word[0] as usize] = true);
            Tensor::from_data(TensorData::new(row, [1, vocab_size]), device)
        });
        Self { longer, forbidden }
    }

    /// Returns the most likely allowed token of each row of `logits`, `[rows, vocab_size]`. Ties go to the lowest id.
    /// Rows for which no token can be chosen are marked as failed.
    ///
    /// # Errors
    /// [`Error::Execution`] if the device fails; the error of the first row once every row has failed.
    #[expect(clippy::disallowed_methods, reason = "the only read back of a step")]
    pub(super) fn choose(&self, logits: Tensor<2>, rows: &mut Rows) -> Result<Vec<u32>, Error> {
        // `-inf` is a valid score: such a token is never chosen. The sum is not finite if any logit is NaN or +inf. The
        // factor keeps the sum of up to 2^20 finite logits finite.
        let is_lowest = logits.clone().equal_elem(f64::NEG_INFINITY);
        let check = logits.clone().mask_fill(is_lowest, 0.0).mul_scalar(0.5_f64.powi(20)).sum_dim(1); // [rows, 1]
        let mut scores = logits;
        if let Some(forbidden) = &self.forbidden {
            let forbidden = forbidden.clone().expand(scores.dims());
            scores = scores.mask_fill(forbidden, f64::NEG_INFINITY);
        }
        if let Some(forbidden) = self.forbidden_now(rows, scores.dims()) {
            let forbidden = Tensor::<2, Bool>::from_data(forbidden, &scores.device());
            scores = scores.mask_fill(forbidden, f64::NEG_INFINITY);
        }
        let (best, ids) = scores.max_dim_with_indices(1); // [rows, 1] each
        let ids = ids.cast(IntDType::I32);

        let failed = |reason: String| Error::Execution { reason };
        let read = Transaction::default().register(check).register(best).register(ids).try_execute();
        let [check, best, ids]: [TensorData; 3] = read
            .map_err(|error| failed(format!("{error:?}")))?
            .try_into()
            .map_err(|_| failed("reading from the device returned the wrong number of tensors".to_owned()))?;
        let floats = |data: TensorData| data.convert_dtype(DType::F32).try_into_vec::<f32>();
        let check = floats(check).map_err(|error| failed(format!("{error:?}")))?;
        let best = floats(best).map_err(|error| failed(format!("{error:?}")))?;
        let ids = ids.try_into_vec::<i32>().map_err(|error| failed(format!("{error:?}")))?;
        for row in 0..ids.len() {
            if rows.finished[row].is_some() {
                continue;
            }
            if !check[row].is_finite() {
                rows.end_failed(row, RowError::NonFinite);
            } else if best[row] == f32::NEG_INFINITY {
                rows.end_failed(row, RowError::NothingAllowed);
            }
        }
        rows.check_failures()?;
        Ok(ids.into_iter().map(|id| id as u32).collect())
    }

    /// Builds the mask of the tokens that would now complete a forbidden sequence, `[rows, vocab_size]`. Returns `None`
    /// if there are none.
    fn forbidden_now(&self, rows: &Rows, [n_rows, vocab_size]: [usize; 2]) -> Option<TensorData> {
        let mut forbidden: Option<Vec<bool>> = None;
        for row in 0..n_rows {
            for word in &self.longer {
                if let Some((&last, begin)) = word.split_last()
                    && rows.tokens(row).ends_with(begin)
                {
                    forbidden.get_or_insert_with(|| vec![false; n_rows * vocab_size])
                        [row * vocab_size + last as usize] = true;
                }
            }
        }
        forbidden.map(|forbidden| TensorData::new(forbidden, [n_rows, vocab_size]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Prompts;
    use crate::logits::argmax;

    #[test]
    fn agrees_with_the_host_about_logits_that_are_not_finite() {
        const OUT: f32 = f32::NEG_INFINITY;
        let logits = [
            [0.5, 2.0, 1.0, 2.0],
            [OUT, OUT, -3.0, OUT],
            [OUT, OUT, OUT, OUT],
            [1.0, f32::NAN, 2.0, OUT],
            [1.0, f32::INFINITY, 2.0, OUT],
            [f32::MIN, -1e30, 0.0, f32::MIN],
        ];
        let device = Device::flex();
        let config = GenerationConfig { max_new_tokens: Some(2), ..GenerationConfig::default() }.resolve(1, 4).unwrap();
        let prompts = Prompts::pad_left(&vec![vec![1]; logits.len()], 0).unwrap();
        let mut rows = Rows::new(&prompts, 1, &config);
        let choice = OnDevice::new(&config, 4, &device);
        let ids = choice.choose(Tensor::from_data(logits, &device), &mut rows).unwrap();
        for (row, scores) in logits.iter().enumerate() {
            match argmax(scores) {
                Ok(id) => assert_eq!((ids[row], rows.has_failed(row)), (id, false), "row {row}"),
                Err(_) => assert!(rows.has_failed(row), "row {row}"),
            }
        }
    }
}
