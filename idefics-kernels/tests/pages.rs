//! Attention over a cache in pages is bitwise equal to attention over a contiguous cache, whichever pages a row has and
//! whatever the other rows are.

use std::ops::Range;

use idefics_kernels::{
    DecodeAttention, Isa, PagedAttention, PagedRow, StridedView, decode_attention_on, paged_attention_on, write_slots,
};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{isas, normal};

/// Sizes of a cache: query heads per key/value head, key/value heads, width of a head, slots per page.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    group: usize,
    kv_heads: usize,
    head_dim: usize,
    page_len: usize,
}

/// A row of the test: its keys and values, `[kv_heads, len, head_dim]`, and the slots that its token sees.
#[derive(Debug)]
struct Row {
    keys: Vec<f32>,
    values: Vec<f32>,
    len: usize,
    seen: Range<usize>,
    mask: Option<Vec<bool>>,
}

fn rows(sizes: Sizes, lens: &[usize], seed: u64) -> Vec<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let row = |(index, &len): (usize, &usize)| {
        let n = sizes.kv_heads * len * sizes.head_dim;
        let [keys, values] = [0, 1].map(|part| normal(n, seed + 2 * index as u64 + part, true));
        let seen = if rng.random() { 0..len } else { rng.random_range(0..len)..len };
        let mask = rng.random::<bool>().then(|| seen.clone().map(|_| rng.random_range(0..4) > 0).collect());
        Row { keys, values, len, seen, mask }
    };
    lens.iter().enumerate().map(row).collect()
}

/// Writes the rows into shuffled pages, token by token. Returns the keys and values of all pages, and the pages of each
/// row.
fn in_pages(sizes: Sizes, rows: &[Row], seed: u64) -> ([Vec<f32>; 2], Vec<Vec<u32>>) {
    let Sizes { kv_heads, head_dim, page_len, .. } = sizes;
    let n_pages = |row: &Row| row.len.div_ceil(page_len);
    let mut pages: Vec<u32> = (0..rows.iter().map(n_pages).sum::<usize>() as u32 + 2).collect();
    pages.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    // Slots that must not be read stay NaN.
    let mut store = [(); 2].map(|()| vec![f32::NAN; pages.len() * kv_heads * page_len * head_dim]);
    let mut pages = pages.into_iter();
    let tables: Vec<Vec<u32>> = rows.iter().map(|row| pages.by_ref().take(n_pages(row)).collect()).collect();
    for (row, table) in rows.iter().zip(&tables) {
        let slot = |slot: usize| table[slot / page_len] * page_len as u32 + (slot % page_len) as u32;
        let slots: Vec<u32> = (0..row.len).map(slot).collect();
        for (store, states) in store.iter_mut().zip([&row.keys, &row.values]) {
            let new = StridedView::contiguous(states, kv_heads, row.len, head_dim);
            write_slots(new, [row.len, kv_heads, head_dim], &slots, page_len, store);
        }
    }
    (store, tables)
}

/// Computes attention of one row over its contiguous cache. Slots outside `seen` are masked.
fn alone(isa: Isa, sizes: Sizes, row: &Row, query: &[f32]) -> Vec<f32> {
    let Sizes { group, kv_heads, head_dim, .. } = sizes;
    let is_seen = |slot: usize| match &row.mask {
        _ if !row.seen.contains(&slot) => false,
        None => true,
        Some(mask) => mask[slot - row.seen.start],
    };
    let mask: Vec<bool> = (0..row.len).map(is_seen).collect();
    let mut out = vec![f32::NAN; query.len()];
    let attention = DecodeAttention {
        query,
        keys: StridedView::contiguous(&row.keys, kv_heads, row.len, head_dim),
        values: StridedView::contiguous(&row.values, kv_heads, row.len, head_dim),
        batch: 1,
        heads: group * kv_heads,
        kv_heads,
        len: row.len,
        head_dim,
        attention_mask: Some(&mask),
        scale: 0.25,
    };
    decode_attention_on(isa, &attention, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn paged_attention_is_bitwise_equal_to_a_contiguous_cache(
        lens in prop::collection::vec(1usize..1200, 1..5),
        (group, kv_heads, head_dim) in (1usize..6, 1usize..3, 1usize..70),
        page_len in prop::sample::select(vec![8, 64, 512]),
        seed in any::<u32>(),
    ) {
        let (sizes, seed) = (Sizes { group, kv_heads, head_dim, page_len }, u64::from(seed));
        let rows = rows(sizes, &lens, seed);
        let ([keys, values], tables) = in_pages(sizes, &rows, seed);
        let width = group * kv_heads * head_dim;
        let query = normal(rows.len() * width, seed + 99, false);
        let paged: Vec<PagedRow<'_>> = rows
            .iter()
            .zip(&tables)
            .map(|(row, pages)| PagedRow { pages, seen: row.seen.clone(), attention_mask: row.mask.as_deref() })
            .collect();
        let heads = group * kv_heads;
        for isa in isas() {
            let attention = PagedAttention {
                query: &query, keys: &keys, values: &values, rows: &paged, heads, kv_heads, page_len, head_dim,
                scale: 0.25,
            };
            let mut out = vec![f32::NAN; query.len()];
            paged_attention_on(isa, &attention, &mut out);
            for (index, row) in rows.iter().enumerate() {
                let expected = alone(isa, sizes, row, &query[index * width..][..width]);
                prop_assert_eq!(&out[index * width..][..width], &expected[..], "row {} on {:?}", index, isa);
            }
        }
    }
}

#[test]
fn rows_may_share_pages_or_see_no_slot() {
    let (keys, values) = (vec![1.0; 2 * 8 * 4], (0..64).map(|value| value as f32).collect::<Vec<_>>());
    let row = |seen: Range<usize>| PagedRow { pages: &[1, 1], seen, attention_mask: None };
    let rows = [row(0..1), row(8..9), row(3..3)];
    let query = vec![1.0; 3 * 4];
    for isa in isas() {
        let attention = PagedAttention {
            query: &query,
            keys: &keys,
            values: &values,
            rows: &rows,
            heads: 1,
            kv_heads: 1,
            page_len: 8,
            head_dim: 4,
            scale: 1.0,
        };
        let mut out = vec![f32::NAN; 12];
        paged_attention_on(isa, &attention, &mut out);
        assert_eq!(out, [32.0, 33.0, 34.0, 35.0, 32.0, 33.0, 34.0, 35.0, 0.0, 0.0, 0.0, 0.0], "{isa:?}");
    }
}

#[test]
#[should_panic(expected = "row 0 has a page that does not exist; the cache has 2 pages")]
fn pages_that_do_not_exist_are_refused() {
    let states = vec![0.0; 2 * 8 * 4];
    let rows = [PagedRow { pages: &[2], seen: 0..1, attention_mask: None }];
    let attention = PagedAttention {
        query: &[0.0; 4],
        keys: &states,
        values: &states,
        rows: &rows,
        heads: 1,
        kv_heads: 1,
        page_len: 8,
        head_dim: 4,
        scale: 1.0,
    };
    paged_attention_on(Isa::best(), &attention, &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "slot 16 is in page 2, which does not exist")]
fn slots_that_do_not_exist_are_refused() {
    let new = [1.0; 4];
    write_slots(StridedView::contiguous(&new, 1, 1, 4), [1, 1, 4], &[16], 8, &mut [0.0; 2 * 8 * 4]);
}
