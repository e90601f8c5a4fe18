use burn::tensor::{DType, Device, Tensor};
use idefics_nn::KvCache;

use crate::common::{assert_close, random};
use crate::memory::measure;

fn states(seed: u64, n_new: usize, device: &Device) -> (Tensor<4>, Tensor<4>) {
    let shape = [2, 3, n_new, 4];
    (random(seed, shape, device), random(seed + 1000, shape, device))
}

#[test]
fn append_matches_concatenation() {
    let device = Device::flex();
    let mut cache = KvCache::new(2, vec![0, 0], 16);
    let mut expected: Option<(Tensor<4>, Tensor<4>)> = None;
    for (step, n_new) in [5, 1, 1, 3, 1].into_iter().enumerate() {
        let (key, value) = states(step as u64, n_new, &device);
        let (keys, values) = match expected.take() {
            None => (key.clone(), value.clone()),
            Some((keys, values)) => {
                (Tensor::cat(vec![keys, key.clone()], 2), Tensor::cat(vec![values, value.clone()], 2))
            }
        };
        for layer in 0..2 {
            let (actual_keys, actual_values) = cache.layer(layer).append(key.clone(), value.clone());
            assert_close("keys", &actual_keys, &keys, 0.0);
            assert_close("values", &actual_values, &values, 0.0);
        }
        cache.advance(n_new);
        assert_eq!(cache.len(), keys.dims()[2]);
        expected = Some((keys, values));
    }
}

#[test]
fn append_copies_only_new_slots() {
    let device = Device::flex();
    let (capacity, shape) = (4096, [1, 8, 1, 64]);
    let bytes = KvCache::bytes(1, 1, 8, capacity, 64, DType::F32);
    assert_eq!(bytes, 2 * 8 * 4096 * 64 * 4);
    let mut cache = KvCache::new(1, vec![0], capacity);
    drop(cache.layer(0).append(Tensor::zeros(shape, &device), Tensor::zeros(shape, &device)));
    for _ in 0..3 {
        let (key, value) = (Tensor::ones(shape, &device), Tensor::ones(shape, &device));
        let (_, taken, _) = measure(|| cache.layer(0).append(key, value));
        assert!(taken < bytes / 100, "one slot of a cache of {bytes} bytes took {taken} bytes");
    }
}

#[test]
fn kept_view_does_not_change() {
    let device = Device::flex();
    let mut cache = KvCache::new(1, vec![0, 0], 4);
    let (key, value) = states(1, 2, &device);
    let (kept, _) = cache.layer(0).append(key.clone(), value);
    let (next_key, next_value) = states(2, 1, &device);
    let (keys, _) = cache.layer(0).append(next_key.clone(), next_value);
    assert_close("kept", &kept, &key, 0.0);
    assert_close("all", &keys, &Tensor::cat(vec![key, next_key], 2), 0.0);
}

#[test]
fn keeps_dtype_of_states() {
    let device = Device::flex();
    let mut cache = KvCache::new(1, vec![0], 4);
    let state = || Tensor::<4>::ones([1, 1, 2, 2], (&device, DType::BF16));
    assert_eq!(cache.layer(0).append(state(), state()).0.dtype(), DType::BF16);
}

#[test]
fn positions_start_after_the_padding() {
    let device = Device::flex();
    let mut cache = KvCache::new(1, vec![0, 2], 8);
    assert!(cache.is_empty());
    assert_eq!(cache.next_positions(3), [0, 1, 2, 0, 0, 0]);
    let (key, value) = states(1, 3, &device);
    drop(cache.layer(0).append(key, value));
    cache.advance(3);
    assert_eq!(cache.next_positions(2), [3, 4, 1, 2]);
    assert_eq!((cache.batch(), cache.capacity(), cache.left_padding()), (2, 8, [0, 2].as_slice()));
}

#[test]
#[should_panic(expected = "5 tokens do not fit into a cache of 4")]
fn panics_beyond_capacity() {
    let device = Device::flex();
    let mut cache = KvCache::new(1, vec![0, 0], 4);
    for n_new in [3, 2] {
        let (key, value) = states(1, n_new, &device);
        cache.layer(0).append(key, value);
    }
}

#[test]
#[should_panic(expected = "every layer must append the same number of slots")]
fn panics_if_a_layer_is_left_out() {
    let device = Device::flex();
    let mut cache = KvCache::new(2, vec![0, 0], 4);
    let (key, value) = states(1, 1, &device);
    cache.layer(0).append(key, value);
    cache.advance(1);
}
