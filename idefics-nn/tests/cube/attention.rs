//! Tests of attention with irregular shapes: one or many queries, grouped heads, cache views, masks, fully masked rows.

use burn::tensor::{Bool, Device, Tensor, TensorData, s};
use idefics_nn::{Activations, attention};
use proptest::prelude::*;

use crate::{difference, gpu, numbers};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mask {
    None,
    /// Queries see the keys up to their own position.
    Causal,
    /// Scattered keys are hidden. Some queries see no key at all.
    Holes,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    kv_heads: usize,
    group: usize,
    queries: usize,
    len: usize,
    head_dim: usize,
}

fn mask_tensor(shape: Shape, mask: Mask, device: &Device) -> Option<Tensor<4, Bool>> {
    let Shape { batch, queries, len, .. } = shape;
    let is_hidden = |row: usize, query: usize, key: usize| match mask {
        Mask::None => false,
        Mask::Causal => key + queries > query + len,
        Mask::Holes => (row + query * 7 + key * 3) % 5 < 3 || (row + query) % 11 == 4,
    };
    let of_row = |row| (0..queries * len).map(move |at| is_hidden(row, at / len, at % len));
    let hidden: Vec<bool> = (0..batch).flat_map(of_row).collect();
    (mask != Mask::None).then(|| Tensor::from_data(TensorData::new(hidden, [batch, 1, queries, len]), device))
}

fn check(shape: Shape, mask: Mask, seed: u64) {
    let Shape { batch, kv_heads, group, queries, len, head_dim } = shape;
    let output = |device: &Device| {
        // Queries have the strides of a projection's output. Keys and values are views of a cache.
        let query = numbers([batch, queries, kv_heads * group, head_dim], seed, device).swap_dims(1, 2);
        let cache = |seed| numbers([batch, kv_heads, len + 5, head_dim], seed, device).slice(s![.., .., 0..len, ..]);
        attention(query, cache(seed ^ 1), cache(seed ^ 2), mask_tensor(shape, mask, device), Activations::F32)
    };
    let difference = difference(output(&gpu()), output(&Device::flex()));
    assert!(difference < 1e-5, "{shape:?}, {mask:?}: {difference}");
}

fn mask() -> impl Strategy<Value = Mask> {
    prop::sample::select(vec![Mask::None, Mask::Causal, Mask::Holes])
}

fn shape(queries: impl Strategy<Value = usize>) -> impl Strategy<Value = Shape> {
    let head_dim = prop::sample::select(vec![4usize, 20, 64, 72, 80, 96, 128]);
    (1usize..3, 1usize..4, 1usize..5, queries, 0usize..290, head_dim).prop_map(
        |(batch, kv_heads, group, queries, before, head_dim)| {
            // There are at least as many keys as queries, as in a decoder.
            Shape { batch, kv_heads, group, queries, len: queries + before, head_dim }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn decode_attention_matches_cpu(shape in shape(Just(1)), mask in mask(), seed in any::<u64>()) {
        check(shape, mask, seed);
    }

    #[test]
    fn prefill_attention_matches_cpu(shape in shape(2usize..70), mask in mask(), seed in any::<u64>()) {
        check(shape, mask, seed);
    }
}

#[test]
fn non_finite_keys_reach_the_output() {
    for queries in [1, 9] {
        for value in [f32::NAN, f32::INFINITY] {
            let dims = [1, 2, 40, 64];
            let mut keys = numbers(dims, 1, &Device::flex()).into_data().try_into_vec::<f32>().unwrap();
            keys[40 * 64 + 7 * 64 + 3] = value; // in the second head
            let key = Tensor::from_data(TensorData::new(keys, dims), &gpu());
            let query = numbers([1, 2, queries, 64], 2, &gpu());
            let context = attention(query, key, numbers(dims, 3, &gpu()), None, Activations::F32);
            let context = context.into_data().try_into_vec::<f32>().unwrap();
            let (first, second) = context.split_at(queries * 64);
            assert!(first.iter().all(|value| value.is_finite()), "{queries} queries");
            assert!(value.is_infinite() || second.iter().all(|value| value.is_nan()), "{queries} queries");
        }
    }
}

#[test]
fn many_query_heads_share_one_key_head() {
    check(Shape { batch: 1, kv_heads: 1, group: 64, queries: 1, len: 150, head_dim: 128 }, Mask::Holes, 5);
}

#[test]
fn head_widths_without_kernel_fall_back() {
    for head_dim in [6, 132] {
        for queries in [1, 9] {
            let shape = Shape { batch: 2, kv_heads: 2, group: 2, queries, len: 30, head_dim };
            check(shape, Mask::Holes, 3);
        }
    }
}
