//! Tests of captured steps, and of the cache that a step shares with its caller.

#![allow(unsafe_code)] // leases and steps are unsafe to create

use burn::tensor::{DType, Device, Int, Tensor, s};
use idefics_nn::{CapturedGraph, DeviceLease, KvCache, Step};
use proptest::prelude::*;

use crate::{difference, gpu, numbers};

const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 12;

/// Creates a lease for the test's thread.
fn lease() -> DeviceLease {
    // SAFETY: GPU tests run one at a time, with `--test-threads=1`, so no other thread uses the device.
    unsafe { DeviceLease::for_this_thread() }
}

/// Creates keys or values of one layer, `[batch, kv_heads, n, head_dim]`.
fn states(batch: usize, n: usize, seed: u64, device: &Device) -> Tensor<4> {
    numbers([batch, n, KV_HEADS, HEAD_DIM], seed, device).swap_dims(1, 2) // the strides of a projection's output
}

/// Creates a cache of one layer that contains a prompt.
fn cache(batch: usize, prompt: usize, capacity: usize, device: &Device) -> KvCache {
    let mut cache = KvCache::new(1, vec![0; batch], capacity);
    cache.layer(0).append(states(batch, prompt, 1, device), states(batch, prompt, 2, device));
    cache.advance(prompt);
    cache
}

fn slot(slot: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::from_data([slot as i32], (device, DType::I32))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn slot_writes_reach_the_cache(batch in 1usize..4, prompt in 1usize..20, more in 1usize..6) {
        let capacity = prompt + more + 2;
        let mut ours = cache(batch, prompt, capacity, &gpu());
        let mut expected = cache(batch, prompt, capacity, &Device::flex());
        for step in 0..more {
            let seed = 10 + step as u64;
            let row = |device: &Device| (states(batch, 1, seed, device), states(batch, 1, seed + 100, device));
            let mut slot_view = ours.slot_view(&slot(prompt + step, &gpu())).unwrap();
            let (key, value) = row(&gpu());
            let (keys, _) = slot_view.layer(0).append(key, value);
            prop_assert_eq!(keys.dims(), [batch, KV_HEADS, capacity, HEAD_DIM]);
            slot_view.advance(1);
            ours.mark_slot_written();
            let (key, value) = row(&Device::flex());
            expected.layer(0).append(key, value);
            expected.advance(1);
        }
        // The caches can be extended as usual afterwards.
        let row = |device: &Device| (states(batch, 1, 5, device), states(batch, 1, 6, device));
        let (key, value) = row(&gpu());
        let (our_keys, our_values) = ours.layer(0).append(key, value);
        let (key, value) = row(&Device::flex());
        let (keys, values) = expected.layer(0).append(key, value);
        prop_assert_eq!(difference(our_keys, keys), 0.0);
        prop_assert_eq!(difference(our_values, values), 0.0);
    }
}

#[test]
fn replay_reads_new_inputs_and_writes_the_cache() {
    let device = gpu();
    let (batch, prompt) = (2, 5);
    let mut ours = cache(batch, prompt, 12, &device);
    let table = numbers([50, KV_HEADS * HEAD_DIM], 3, &device);
    let step = |[ids, slot]: &[Tensor<1, Int>; 2]| {
        let mut slot_view = ours.slot_view(slot)?;
        let (ids, table) = (ids.clone(), table.clone());
        // SAFETY: the step holds the cache, its inputs and the table. Every call does the same operations on them,
        // without uploads.
        let step = unsafe {
            Step::new(move || {
                let rows = table.clone().select(0, ids.clone()).reshape([batch, KV_HEADS, 1, HEAD_DIM]);
                let (keys, values) = slot_view.layer(0).append(rows.clone(), rows * 2.0);
                (keys + values).sum_dim(3).sum_dim(1).reshape([batch, 12])
            })
        };
        Some(step)
    };
    let lease = lease();
    let mut graph = CapturedGraph::capture([&[7, 8], &[5]], &device, &lease, step).unwrap().unwrap();
    let mut sums = Vec::new();
    for (step, ids) in [[7, 8], [9, 3], [49, 0]].iter().enumerate() {
        let sum = graph.run([ids, &[(prompt + step) as i32]]).unwrap();
        ours.mark_slot_written();
        sums.push(sum.into_data()); // read before the next run overwrites it
    }
    drop(graph);
    let (keys, values) = ours.layer(0).append(states(batch, 1, 5, &device), states(batch, 1, 6, &device));
    for (step, ids) in [[7, 8], [9, 3], [49, 0]].iter().enumerate() {
        let ids = Tensor::<1, Int>::from_data(*ids, &device);
        let rows = table.clone().select(0, ids).reshape([batch, KV_HEADS, 1, HEAD_DIM]);
        let at = s![.., .., prompt + step..prompt + step + 1, ..];
        assert_eq!(difference(keys.clone().slice(at), rows.clone()), 0.0, "step {step}");
        assert_eq!(difference(values.clone().slice(at), rows * 2.0), 0.0, "step {step}");
    }
    let expected = (keys + values).sum_dim(3).sum_dim(1).reshape([batch, prompt + 4]);
    for (step, sum) in sums.into_iter().enumerate() {
        let filled = s![.., ..prompt + 1 + step];
        let ours = Tensor::<2>::from_data(sum, &device).slice(filled);
        assert!(difference(ours, expected.clone().slice(filled)) < 1e-6, "step {step}");
    }
}

#[cfg(not(feature = "cuda"))] // CUDA accepts uploads in a capture
#[test]
fn failed_capture_only_spoils_its_own_cache() {
    let device = gpu();
    let mut cache = cache(1, 5, 12, &device);
    let mut spare = cache.copied();
    let step = |[slot]: &[Tensor<1, Int>; 1]| {
        let (mut slot_view, device) = (cache.slot_view(slot)?, device.clone());
        // SAFETY: a step must not upload data, as `states` does here. But this device refuses to capture uploads, so
        // the step is never replayed.
        let step = unsafe {
            Step::new(move || {
                let (keys, _) = slot_view.layer(0).append(states(1, 1, 7, &device), states(1, 1, 8, &device));
                keys.sum_dim(3).sum_dim(1).reshape([1, 12])
            })
        };
        Some(step)
    };
    assert!(CapturedGraph::capture([&[5]], &device, &lease(), step).is_err());
    cache = spare.copied();
    for cache in [&mut cache, &mut spare] {
        let (keys, _) = cache.layer(0).append(states(1, 1, 9, &device), states(1, 1, 9, &device));
        let expected = Tensor::cat(vec![states(1, 5, 1, &device), states(1, 1, 9, &device)], 2);
        assert_eq!(difference(keys, expected), 0.0);
    }
}

#[test]
fn cpu_does_not_capture() {
    let device = Device::flex();
    assert!(cache(1, 3, 5, &device).slot_view(&slot(3, &device)).is_none());
    let step = |_: &[Tensor<1, Int>; 1]| -> Option<Step<'_>> { panic!("a CPU must not ask for the step") };
    assert!(CapturedGraph::capture([&[0]], &device, &lease(), step).unwrap().is_none());
}
