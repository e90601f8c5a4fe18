//! A cache in pages must not change the output of a row. The output depends neither on the pages and chunks of the row
//! nor on other rows.

use burn::tensor::{DType, Device, Int, Tensor};
use idefics_nn::{PAGE_LEN, PageStore, PagedRow};
use idefics_text::{Decoder, DecoderStack, NoObserver, TextConfig};
use proptest::prelude::*;

use crate::SAME;
use crate::common::{Model, assert_close, part, random};
use crate::reference::decoder;
use crate::rope::longrope;

/// A decoder with a cache in pages.
struct Paged {
    config: TextConfig,
    decoder: Decoder,
    device: Device,
    store: PageStore,
}

impl Paged {
    fn new(config: TextConfig, decoder: Decoder, n_pages: usize) -> Self {
        let device = Device::flex();
        let devices = vec![device.clone(); config.num_hidden_layers];
        let store = PageStore::new(n_pages, config.n_kv_heads(), config.head_dim(), DType::F32, &devices);
        Self { config, decoder, device, store }
    }

    fn layers(&self) -> std::ops::Range<usize> {
        0..self.decoder.n_layers()
    }

    /// Runs the first tokens of a row in chunks of `chunk_len`. Returns `[1, n_tokens, d]`.
    fn prefill(&mut self, tokens: &Tensor<3>, pages: &[u32], chunk_len: usize) -> Tensor<3> {
        let n_tokens = tokens.dims()[1];
        let layers = self.layers();
        let chunk = |start: usize| {
            let end = n_tokens.min(start + chunk_len);
            let chunk = part(tokens, 1, start, end);
            let positions = self.decoder.position_rules().for_chunk(&chunk, start..end, n_tokens, None);
            let mut key_values = self.store.chunk(pages.to_vec(), start..end);
            self.decoder.layers(layers.clone(), chunk, &positions, &mut key_values, &mut NoObserver)
        };
        Tensor::cat((0..n_tokens).step_by(chunk_len).map(chunk).collect(), 1)
    }

    /// Runs one token of each row, at its position. Returns `[rows, 1, d]`.
    fn decode(&mut self, tokens: Tensor<3>, pages: &[&[u32]], position_ids: &[usize]) -> Tensor<3> {
        let rules = self.decoder.position_rules();
        let positions = rules.for_rows(&tokens, position_ids, None);
        let row = |(pages, position): (&&[u32], &usize)| PagedRow {
            pages: pages.to_vec(),
            seen: rules.seen(*position),
            attention_mask: None,
        };
        let rows = pages.iter().zip(position_ids).map(row).collect();
        self.decoder.layers(self.layers(), tokens, &positions, &mut self.store.decode(rows), &mut NoObserver)
    }
}

/// Prefills each row in chunks. Then decodes the remaining tokens of all rows together; each row starts from its own
/// length. Compares the outputs with those of each row alone in a contiguous cache.
fn compare(config: TextConfig, decoder: Decoder, rows: &[(usize, usize)], chunk_len: usize, seed: u64) {
    let mut paged = Paged::new(config, decoder, 16);
    let d = paged.config.hidden_size;
    let tokens: Vec<Tensor<3>> = rows
        .iter()
        .enumerate()
        .map(|(row, (prompt, new))| random(seed + row as u64, [1, prompt + new, d], &paged.device))
        .collect();
    // The pages of a row are in a scattered order and not adjacent.
    let mut free = (0..16u32).rev().map(|page| (page * 7 + seed as u32) % 16);
    let mut tables = Vec::new();
    for (prompt, new) in rows {
        tables.push(free.by_ref().take((prompt + new).div_ceil(PAGE_LEN)).collect::<Vec<u32>>());
    }
    let mut outputs: Vec<Vec<Tensor<3>>> = Vec::new();
    for ((tokens, (prompt, _)), table) in tokens.iter().zip(rows).zip(&tables) {
        outputs.push(vec![paged.prefill(&part(tokens, 1, 0, *prompt), table, chunk_len)]);
    }
    let longest = rows.iter().map(|(_, new)| *new).max().unwrap_or(0);
    for step in 0..longest {
        let active: Vec<usize> = (0..rows.len()).filter(|row| step < rows[*row].1).collect();
        let positions: Vec<usize> = active.iter().map(|row| rows[*row].0 + step).collect();
        let new = active.iter().zip(&positions).map(|(row, at)| part(&tokens[*row], 1, *at, at + 1));
        let new = Tensor::cat(new.collect(), 0);
        let pages: Vec<&[u32]> = active.iter().map(|row| tables[*row].as_slice()).collect();
        let states = paged.decode(new, &pages, &positions);
        for (index, row) in active.iter().enumerate() {
            outputs[*row].push(part(&states, 0, index, index + 1));
        }
    }
    for (row, outputs) in outputs.into_iter().enumerate() {
        let n_tokens = tokens[row].dims()[1];
        let mut cache = paged.config.cache(vec![0], n_tokens);
        let prompt = part(&tokens[row], 1, 0, rows[row].0);
        let mut expected = vec![paged.decoder.forward(prompt, &mut cache)];
        for at in rows[row].0..n_tokens {
            expected.push(paged.decoder.forward(part(&tokens[row], 1, at, at + 1), &mut cache));
        }
        assert_close(&format!("row {row} of {rows:?}"), &Tensor::cat(outputs, 1), &Tensor::cat(expected, 1), SAME);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_any_length_match_rows_alone(
        rows in prop::collection::vec((1usize..100, 0usize..40), 1..5),
        chunk_len in prop::sample::select(vec![1, 17, 64, 256]),
        model in prop::sample::select(vec!["odd-heads", "wide-heads", "sliding-sharded"]),
        seed in 0u64..1000,
    ) {
        let (config, decoder) = decoder(&Model::named(model), &Device::flex());
        compare(config, decoder, &rows, chunk_len, seed);
    }

    /// If the angles depend on the length, each row uses its own length, not that of the longest row.
    #[test]
    fn length_dependent_angles_use_the_length_of_the_row(
        rows in prop::collection::vec((1usize..30, 1usize..10), 2..4), seed in 0u64..1000,
    ) {
        let decoder = longrope().init(&Device::flex()).unwrap();
        compare(longrope(), decoder, &rows, 64, seed);
    }
}

#[test]
fn copied_page_belongs_to_its_new_owner() {
    let (config, decoder) = decoder(&Model::named("odd-heads"), &Device::flex());
    let mut paged = Paged::new(config, decoder, 3);
    let ids = Tensor::<1, Int>::from_ints((0..30).map(|id| id % 7).collect::<Vec<i32>>().as_slice(), &paged.device);
    let tokens = paged.decoder.embed(ids.reshape([1, 30]));
    paged.prefill(&part(&tokens, 1, 0, 20), &[2], 64);
    paged.store.copy_page(2, 0);
    let [first, second] = [part(&tokens, 1, 20, 21), part(&tokens, 1, 25, 26)];
    // Each row continues from its own copy of the page.
    let together = paged.decode(Tensor::cat(vec![first.clone(), second.clone()], 0), &[&[2], &[0]], &[20, 20]);
    for (row, token) in [first, second].into_iter().enumerate() {
        let mut cache = paged.config.cache(vec![0], 21);
        paged.decoder.forward(part(&tokens, 1, 0, 20), &mut cache);
        let expected = paged.decoder.forward(token, &mut cache);
        assert_close("row", &part(&together, 0, row, row + 1), &expected, SAME);
    }
}

#[test]
#[should_panic(expected = "position 64 is beyond the 1 pages of its row")]
fn tokens_need_a_page() {
    let (config, decoder) = decoder(&Model::named("odd-heads"), &Device::flex());
    let mut paged = Paged::new(config, decoder, 2);
    let token = Tensor::zeros([1, 1, paged.config.hidden_size], &paged.device);
    paged.decode(token, &[&[0]], &[64]);
}
