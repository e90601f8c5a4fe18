//! Caching, batching and padding must not change the output of a row.

use burn::tensor::{Device, Tensor, s};
use idefics_text::{Decoder, DecoderStack, TextConfig};
use proptest::prelude::*;

use crate::SAME;
use crate::common::{Model, assert_close, part, random};
use crate::reference::decoder;

/// Three checkpoints: with three query heads and one key/value head, with a `head_dim` other than hidden size / heads,
/// and with a sliding window of 7 tokens.
const MODELS: [&str; 3] = ["odd-heads", "wide-heads", "sliding-sharded"];

struct Text {
    config: TextConfig,
    decoder: Decoder,
    device: Device,
}

impl Text {
    fn new(model: &str) -> Self {
        let device = Device::flex();
        let (config, decoder) = decoder(&Model::named(model), &device);
        Self { config, decoder, device }
    }

    /// Returns random embeddings of one row, `[1, seq, d]`.
    fn row(&self, seed: u64, seq: usize) -> Tensor<3> {
        random(seed, [1, seq, self.config.hidden_size], &self.device)
    }

    /// Returns the row with `padding` random vectors as left padding.
    fn padded(&self, row: &Tensor<3>, padding: usize, padding_seed: u64) -> Tensor<3> {
        if padding == 0 {
            return row.clone();
        }
        Tensor::cat(vec![self.row(padding_seed, padding) * 100.0, row.clone()], 1)
    }

    /// Runs all tokens in one call.
    fn at_once(&self, inputs_embeds: &Tensor<3>, left_padding: Vec<usize>) -> Tensor<3> {
        let mut cache = self.config.cache(left_padding, inputs_embeds.dims()[1]);
        self.decoder.forward(inputs_embeds.clone(), &mut cache)
    }

    /// Runs the tokens in several calls; `chunks` has the number of tokens in each call.
    fn in_chunks(&self, inputs_embeds: &Tensor<3>, left_padding: Vec<usize>, chunks: &[usize]) -> Tensor<3> {
        // The cache has more slots than tokens. The tokens must not attend to the unused slots.
        let mut cache = self.config.cache(left_padding, inputs_embeds.dims()[1] + 5);
        let outputs = chunks.iter().map(|&n_new| {
            let start = cache.len();
            self.decoder.forward(part(inputs_embeds, 1, start, start + n_new), &mut cache)
        });
        let outputs = Tensor::cat(outputs.collect(), 1);
        assert_eq!(cache.len(), inputs_embeds.dims()[1]);
        outputs
    }
}

#[test]
fn cached_decode_matches_full_prefill() {
    for model in MODELS {
        let text = Text::new(model);
        let inputs_embeds = Tensor::cat(vec![text.row(1, 40), text.row(2, 40)], 0);
        let expected = text.at_once(&inputs_embeds, vec![0, 0]);
        for prefill in [1, 5, 23, 39] {
            let chunks: Vec<usize> = std::iter::once(prefill).chain(std::iter::repeat_n(1, 40 - prefill)).collect();
            let stepped = text.in_chunks(&inputs_embeds, vec![0, 0], &chunks);
            assert_close(&format!("{model}, {prefill} tokens first"), &stepped, &expected, SAME);
        }
    }
}

#[test]
fn chunked_prefill_matches_full_prefill() {
    for model in MODELS {
        let text = Text::new(model);
        let inputs_embeds = Tensor::cat(vec![text.row(1, 40), text.row(2, 40)], 0);
        let expected = text.at_once(&inputs_embeds, vec![0, 9]);
        for n_tokens in [1, 6, 31, 79] {
            let mut cache = text.config.cache(vec![0, 9], 40);
            let chunked = text.decoder.forward_in_chunks(inputs_embeds.clone(), n_tokens, &mut cache);
            let real = |states: &Tensor<3>| (states.clone().narrow(0, 0, 1), states.clone().slice(s![1..2, 9..]));
            let ((first, second), (expected, expected_second)) = (real(&chunked), real(&expected));
            assert_close(&format!("{model}, {n_tokens} tokens at a time"), &first, &expected, SAME);
            assert_close(&format!("{model}, {n_tokens} tokens at a time, padded"), &second, &expected_second, SAME);
        }
    }
}

#[test]
fn prefixes_match_the_full_sequence() {
    // Because of the causal mask, later tokens do not change earlier ones.
    for model in MODELS {
        let text = Text::new(model);
        let inputs_embeds = text.row(1, 24);
        let whole = text.at_once(&inputs_embeds, vec![0]);
        for seq in 1..24 {
            let prefix = text.at_once(&part(&inputs_embeds, 1, 0, seq), vec![0]);
            assert_close(&format!("{model}, {seq} tokens"), &prefix, &part(&whole, 1, 0, seq), SAME);
        }
    }
}

#[test]
fn left_padding_has_no_effect() {
    for model in MODELS {
        let text = Text::new(model);
        let row = text.row(1, 20);
        let expected = text.at_once(&row, vec![0]);
        for padding in [1, 7, 32] {
            for padding_seed in [100, 200] {
                let padded = text.padded(&row, padding, padding_seed);
                let seq = 20 + padding;
                let name = format!("{model}, {padding} padded");
                let output = text.at_once(&padded, vec![padding]);
                assert_close(&name, &part(&output, 1, padding, seq), &expected, SAME);
                let output = text.in_chunks(&padded, vec![padding], &[padding + 4, 1, 1, 12, 1, 1]);
                assert_close(&name, &part(&output, 1, padding, seq), &expected, SAME);
            }
        }
    }
}

#[test]
fn padding_produces_no_nan() {
    let text = Text::new("sliding-sharded");
    let output = text.at_once(&text.padded(&text.row(1, 3), 32, 100), vec![32]);
    let sum: f32 = output.abs().sum().into_scalar();
    assert!(sum.is_finite(), "{sum}");
}

#[test]
fn single_row_matches_row_in_batch() {
    let lengths = [20, 3, 1, 13, 20, 8, 19];
    for model in MODELS {
        let text = Text::new(model);
        let rows: Vec<Tensor<3>> = lengths.iter().enumerate().map(|(row, &n)| text.row(row as u64, n)).collect();
        let alone: Vec<Tensor<3>> = rows.iter().map(|row| text.at_once(row, vec![0])).collect();
        for order in [&[0, 1][..], &[2, 4, 3], &[0, 1, 2, 3, 4, 5, 6], &[6, 5, 4, 3, 2, 1, 0]] {
            let seq = order.iter().map(|&row| lengths[row]).max().unwrap();
            let left_padding: Vec<usize> = order.iter().map(|&row| seq - lengths[row]).collect();
            let padded = order.iter().zip(&left_padding).map(|(&row, &n)| text.padded(&rows[row], n, 100 + row as u64));
            let inputs_embeds = Tensor::cat(padded.collect(), 0);
            let output = text.at_once(&inputs_embeds, left_padding.clone());
            for (index, &row) in order.iter().enumerate() {
                let real = part(&part(&output, 0, index, index + 1), 1, left_padding[index], seq);
                assert_close(&format!("{model}, row {row} of {order:?}"), &real, &alone[row], SAME);
            }
        }
    }
}

#[test]
fn rows_keep_their_order() {
    let text = Text::new("wide-heads");
    let inputs_embeds = random(1, [4, 9, text.config.hidden_size], &text.device);
    let output = text.at_once(&inputs_embeds, vec![0, 3, 8, 1]);
    let flipped = text.at_once(&inputs_embeds.flip([0]), vec![1, 8, 3, 0]);
    assert_close("flipped", &flipped.flip([0]), &output, 0.0);
}

#[test]
fn sliding_window_limits_the_receptive_field() {
    let text = Text::new("sliding-sharded");
    let window = text.config.sliding_window.unwrap();
    let layers = text.config.num_hidden_layers;
    let seq = 40;
    let inputs_embeds = text.row(1, seq);
    let changed = Tensor::cat(vec![text.row(2, 1), part(&inputs_embeds, 1, 1, seq)], 1);
    let [output, changed] = [inputs_embeds, changed].map(|inputs_embeds| text.at_once(&inputs_embeds, vec![0]));
    // Each layer extends the reach of the first token by `window - 1` slots.
    let reach = layers * (window - 1) + 1;
    assert_close("out of reach", &part(&changed, 1, reach, seq), &part(&output, 1, reach, seq), 0.0);
    let within = (part(&changed, 1, 0, reach) - part(&output, 1, 0, reach)).abs().max_dim(2).min();
    assert!(within.into_scalar::<f32>() > 0.0, "every token within reach must change");
}

#[test]
fn window_as_long_as_the_text_has_no_effect() {
    let device = Device::flex();
    let model = Model::named("sliding-sharded");
    let mut config = model.section_over("text_config", &crate::mistral_defaults());
    let outputs = [None, Some(12), Some(1000), Some(usize::MAX)].map(|window| {
        config.sliding_window = window;
        let decoder = model.load(config.init(&device).unwrap(), crate::PREFIX);
        let inputs_embeds = random(1, [1, 12, config.hidden_size], &device);
        decoder.forward(inputs_embeds, &mut config.cache(vec![0], 12))
    });
    for output in &outputs[1..] {
        assert_close("window", output, &outputs[0], 0.0);
    }
}

#[test]
fn output_is_deterministic() {
    let text = Text::new("odd-heads");
    let inputs_embeds = text.row(1, 20);
    let first = text.at_once(&inputs_embeds, vec![2]);
    for _ in 0..5 {
        assert_close("again", &text.at_once(&inputs_embeds, vec![2]), &first, 0.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_chunking_matches_one_call(
        chunks in proptest::collection::vec(1_usize..9, 1..6), padding in 0_usize..9, seed: u64,
    ) {
        let text = Text::new("sliding-sharded");
        let seq: usize = chunks.iter().sum();
        let padding = padding.min(seq - 1);
        let inputs_embeds = Tensor::cat(vec![text.row(seed, seq), text.row(seed.wrapping_add(1), seq)], 0);
        let expected = text.at_once(&inputs_embeds, vec![padding, 0]);
        let output = text.in_chunks(&inputs_embeds, vec![padding, 0], &chunks);
        for (row, padding) in [padding, 0].into_iter().enumerate() {
            let real = |states: &Tensor<3>| part(&part(states, 0, row, row + 1), 1, padding, seq);
            assert_close("row", &real(&output), &real(&expected), SAME);
        }
    }
}

#[test]
#[should_panic(expected = "do not fit into a cache of 4")]
fn panics_if_the_cache_is_full() {
    let text = Text::new("odd-heads");
    text.decoder.forward(text.row(1, 5), &mut text.config.cache(vec![0], 4));
}
