use burn::tensor::{Bool, DType, Device, Tensor};
use idefics_nn::{Activations, attention, attention_weights};
use proptest::prelude::*;

use crate::EXACT;
use crate::common::{assert_values_close, bool_mask, numbers, random, values};

/// Sizes of one problem. The batch has two rows.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
}

const BATCH: usize = 2;

/// Creates query, key and value. `scale` multiplies the query: the larger it is, the more the scores differ.
fn states(sizes: Sizes, scale: f32, device: &Device) -> [Tensor<4>; 3] {
    let Sizes { heads, kv_heads, queries, keys, head_dim } = sizes;
    [
        random(1, [BATCH, heads, queries, head_dim], device) * scale,
        random(2, [BATCH, kv_heads, keys, head_dim], device),
        random(3, [BATCH, kv_heads, keys, head_dim], device),
    ]
}

/// Computes attention in f64, one query at a time. Returns (context, weights).
fn naive(sizes: Sizes, states: &[Tensor<4>; 3], mask: &[bool]) -> (Vec<f32>, Vec<f32>) {
    let Sizes { heads, kv_heads, queries, keys, head_dim } = sizes;
    let [query, key, value] = states.each_ref().map(|states| values(states.clone()));
    let (mut context, mut all_weights) = (Vec::new(), Vec::new());
    for (index, query) in query.chunks(head_dim).enumerate() {
        let (row, head, position) = (index / (heads * queries), index / queries % heads, index % queries);
        let first = (row * kv_heads + head / (heads / kv_heads)) * keys; // index of this head's first key and value
        let seen = |k: usize| !mask[(row * queries + position) * keys + k];
        let vector = |of: &[f32], k: usize, i: usize| f64::from(of[(first + k) * head_dim + i]);
        let score = |k| (0..head_dim).map(|i| f64::from(query[i]) * vector(&key, k, i)).sum::<f64>();
        let scores: Vec<f64> =
            (0..keys).map(|k| if seen(k) { score(k) / (head_dim as f64).sqrt() } else { f64::NEG_INFINITY }).collect();
        let largest = scores.iter().copied().fold(f64::MIN, f64::max); // finite even if every key is hidden
        let exps: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum = exps.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let weights: Vec<f64> = exps.iter().map(|exp| exp / sum).collect();
        context.extend((0..head_dim).map(|i| (0..keys).map(|k| weights[k] * vector(&value, k, i)).sum::<f64>() as f32));
        all_weights.extend(weights.iter().map(|&weight| weight as f32));
    }
    (context, all_weights)
}

/// Creates three masks. The first hides nothing. The second is causal: the last query sees all keys. The third hides
/// scattered keys, and all keys of some queries.
fn masks(sizes: Sizes) -> [Vec<bool>; 3] {
    let Sizes { queries, keys, .. } = sizes;
    let rows = || (0..BATCH * queries).flat_map(move |row| (0..keys).map(move |key| (row, key)));
    let scattered = numbers(4, BATCH * queries * keys);
    [
        vec![false; BATCH * queries * keys],
        rows().map(|(row, key)| key + queries > row % queries + keys).collect(),
        rows().zip(scattered).map(|((row, _), number)| row % 5 == 2 || number < 0.3).collect(),
    ]
}

fn check(sizes: Sizes, scale: f32) {
    let device = Device::flex();
    let states = states(sizes, scale, &device);
    for (index, mask) in masks(sizes).into_iter().enumerate() {
        let name = format!("{sizes:?}, mask {index}");
        let (context, weights) = naive(sizes, &states, &mask);
        let tensor = || bool_mask(mask.clone(), [BATCH, 1, sizes.queries, sizes.keys], &device);
        let [query, key, value] = states.clone();
        // A mask that hides nothing must give the same result as no mask.
        let options: &[Option<Tensor<4, Bool>>] = if index == 0 { &[None, Some(tensor())] } else { &[Some(tensor())] };
        for option in options {
            let output = attention(query.clone(), key.clone(), value.clone(), option.clone(), Activations::F32);
            assert_eq!(output.dims(), query.dims(), "{name}");
            assert_values_close(&name, &values(output), &context, EXACT);
            let output = attention_weights(query.clone(), key.clone(), option.clone());
            assert_eq!(output.dims(), [BATCH, sizes.heads, sizes.queries, sizes.keys], "{name}");
            assert_values_close(&name, &values(output), &weights, EXACT);
        }
    }
}

#[test]
fn matches_reference_implementation() {
    for (heads, kv_heads) in [(1, 1), (3, 3), (4, 2), (6, 1)] {
        for (queries, keys) in [(1, 1), (1, 33), (2, 2), (5, 7), (31, 64), (33, 129)] {
            for head_dim in [1, 16, 72] {
                check(Sizes { heads, kv_heads, queries, keys, head_dim }, 3.0);
            }
        }
    }
}

#[test]
fn several_blocks_of_keys_match_reference_implementation() {
    // There are more keys than the CPU kernel processes in one block (at most 384).
    for (heads, kv_heads, queries, keys) in [(1, 1, 513, 520), (4, 1, 130, 520), (2, 2, 3, 90_000)] {
        check(Sizes { heads, kv_heads, queries, keys, head_dim: 8 }, 3.0);
    }
}

#[test]
fn fully_masked_query_gives_zero() {
    let device = Device::flex();
    for (queries, keys) in [(1, 1), (4, 70), (600, 500)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let sizes = Sizes { heads: 2, kv_heads: 1, queries, keys, head_dim: 16 };
            let [query, key, value] = states(sizes, 100.0, &device).map(|states| states.cast(dtype));
            // Every second query, starting with the first, sees nothing. The other queries see only the last key.
            let mask =
                (0..BATCH * queries * keys).map(|i| i / keys % queries % 2 == 0 || i % keys + 1 < keys).collect();
            let mask = Some(bool_mask(mask, [BATCH, 1, queries, keys], &device));
            let weights = values(attention_weights(query.clone(), key.clone(), mask.clone()));
            let context = values(attention(query, key, value.clone(), mask, Activations::F32));
            let value = values(value);
            for (index, context) in context.chunks(16).enumerate() {
                let weights = &weights[index * keys..(index + 1) * keys];
                let row = index / (2 * queries);
                let last = &value[(row + 1) * keys * 16 - 16..(row + 1) * keys * 16];
                let blind = index % queries % 2 == 0;
                let expected = if blind { &[0.0; 16] } else { last };
                assert_values_close("context", context, expected, 0.0);
                assert_eq!(weights.iter().sum::<f32>(), if blind { 0.0 } else { 1.0 });
            }
        }
    }
}

#[test]
fn decode_attention_reads_strided_keys() {
    let device = Device::flex();
    let sizes = Sizes { heads: 4, kv_heads: 2, queries: 1, keys: 30, head_dim: 16 };
    let [query, key, value] = states(sizes, 3.0, &device);
    // The mask has one row for the whole batch.
    let mask = bool_mask((0..30).map(|key| key % 3 == 0).collect(), [1, 1, 1, 30], &device);
    let layouts: [fn(Tensor<4>) -> Tensor<4>; 4] = [
        |states| states.swap_dims(1, 2).reshape([BATCH, 30, 2, 16]).swap_dims(1, 2),
        |states| Tensor::cat(vec![states.clone().swap_dims(2, 3); 2], 3).narrow(3, 30, 30).swap_dims(2, 3),
        |states| Tensor::cat(vec![states.flip([3]); 2], 2).narrow(2, 30, 30).flip([3]),
        |states| states.repeat_dim(2, 2).slice([0..BATCH, 0..2, 30..60, 0..16]),
    ];
    for mask in [None, Some(mask)] {
        let expected = values(attention(query.clone(), key.clone(), value.clone(), mask.clone(), Activations::F32));
        for (index, layout) in layouts.iter().enumerate() {
            let [key, value] = [key.clone(), value.clone()].map(layout);
            let context = attention(query.clone(), key, value, mask.clone(), Activations::F32);
            assert_values_close(&format!("layout {index}"), &values(context), &expected, 0.0);
        }
        // Keys and values may have 16 bits.
        let [key, value] = [key.clone(), value.clone()].map(|states| states.cast(DType::BF16));
        let context = attention(query.clone(), key, value, mask, Activations::F32);
        assert_values_close("bf16", &values(context), &expected, 0.05);
    }
}

#[test]
fn extreme_scores_select_the_largest() {
    let device = Device::flex();
    let keys = 40;
    for (scale, best) in [(1e5, keys - 1), (-1e5, 0)] {
        // The scores range from 0 to ±3.9e5, in steps of 1e4.
        let query = Tensor::<4>::full([1, 1, 1, 4], scale, &device);
        let steps: Vec<f32> = (0..keys).flat_map(|key| [key as f32 * 0.05; 4]).collect();
        let key = Tensor::<1>::from_floats(steps.as_slice(), &device).reshape([1, 1, keys, 4]);
        let value = random(1, [1, 1, keys, 4], &device);
        let expected = values(value.clone())[best * 4..best * 4 + 4].to_vec();
        assert_values_close("context", &values(attention(query, key, value, None, Activations::F32)), &expected, EXACT);
    }
}

#[test]
fn equal_scores_get_equal_weights() {
    let device = Device::flex();
    let query = Tensor::<4>::zeros([1, 2, 3, 4], &device);
    let key = random(1, [1, 2, 5, 4], &device);
    assert_values_close("weights", &values(attention_weights(query, key, None)), &[0.2; 30], EXACT);
}

#[test]
#[should_panic(expected = "4 query heads cannot share 3 key/value heads")]
fn rejects_heads_that_do_not_divide_into_groups() {
    let device = Device::flex();
    let states = |heads| Tensor::<4>::zeros([1, heads, 1, 2], &device);
    attention(states(4), states(3), states(3), None, Activations::F32);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn context_is_weights_times_values(
        kv_heads in 1_usize..4, group in 1_usize..4, queries in 1_usize..9, keys in 1_usize..40, seed: u64,
    ) {
        let device = Device::flex();
        let heads = kv_heads * group;
        let query = random(seed, [1, heads, queries, 8], &device) * 4.0;
        let [key, value] = [1, 2].map(|more| random(seed.wrapping_add(more), [1, kv_heads, keys, 8], &device));
        let hidden = numbers(seed, queries * keys).into_iter().map(|number| number < 0.0).collect::<Vec<bool>>();
        let mask = bool_mask(hidden.clone(), [1, 1, queries, keys], &device);

        let weights = attention_weights(query.clone(), key.clone(), Some(mask.clone()));
        for (index, row) in values(weights.clone()).chunks(keys).enumerate() {
            let hidden = &hidden[index % queries * keys..][..keys];
            prop_assert!(row.iter().zip(hidden).all(|(&weight, &hidden)| !hidden || weight == 0.0));
            let sum = if hidden.iter().all(|&hidden| hidden) { 0.0 } else { 1.0 };
            prop_assert!((row.iter().sum::<f32>() - sum).abs() <= EXACT);
        }
        let repeated = value.clone().reshape([1, kv_heads, 1, keys, 8]).repeat_dim(2, group);
        let repeated = repeated.reshape([1, heads, keys, 8]);
        let expected = values(weights.matmul(repeated));
        assert_values_close("context", &values(attention(query, key, value, Some(mask), Activations::F32)), &expected, EXACT);
    }
}
