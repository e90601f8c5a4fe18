//! Benchmarks of layers with the shapes of idefics2-8b: `cargo bench -p idefics-nn`.

#![allow(clippy::disallowed_methods)] // the benchmarks wait for the device

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Bool, DType, Device, Distribution, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_nn::{Activation, Activations, KvCache, LayerNorm, Linear, RmsNorm, attention};

const F32: usize = 4; // size of a value in bytes

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Default, device)
}

/// Times `work`, whose result is kept until the device has finished. Calls `work` once beforehand, because weights are
/// initialised at first use.
fn bench<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    throughput: Throughput,
    device: &Device,
    mut work: impl FnMut() -> T,
) {
    drop(work());
    group.throughput(throughput);
    group.bench_function(BenchmarkId::new(name, format!("{device:?}")), |b| {
        b.iter(|| {
            let result = work();
            device.sync().expect("the device must finish its work");
            result
        });
    });
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group
}

/// Benchmarks Mistral's up projection, for one token and for a prompt.
fn linear(c: &mut Criterion) {
    let device = Device::default(); // chosen by the environment variable BURN_DEVICE: flex, cuda or wgpu
    let mut group = group(c, "linear");
    let linear = Linear::new_without_bias(4096, 14_336, &device);
    let weight_bytes = Throughput::Bytes((4096 * 14_336 * F32) as u64);
    let token = random([1, 4096], &device);
    bench(&mut group, "decode_1x4096x14336", weight_bytes, &device, || linear.forward(black_box(token.clone())));
    let prompt = random([128, 4096], &device);
    let products = Throughput::Elements(128 * 4096 * 14_336);
    bench(&mut group, "prefill_128x4096x14336", products, &device, || linear.forward(black_box(prompt.clone())));
}

fn elementwise(c: &mut Criterion) {
    let device = Device::default();
    let mut group = group(c, "elementwise");
    let n = |dims: [usize; 2]| Throughput::Elements((dims[0] * dims[1]) as u64);
    let (norm, states) = (RmsNorm::new(4096, 1e-5, &device), random([320, 4096], &device));
    bench(&mut group, "rms_norm_320x4096", n([320, 4096]), &device, || norm.forward(black_box(states.clone())));
    let (norm, states) = (LayerNorm::new(1152, 1e-6, &device), random([4900, 1152], &device));
    bench(&mut group, "layer_norm_4900x1152", n([4900, 1152]), &device, || norm.forward(black_box(states.clone())));
    let states = random([676, 4304], &device);
    let gelu = || Activation::GeluTanh.forward(black_box(states.clone()));
    bench(&mut group, "gelu_tanh_676x4304", n([676, 4304]), &device, gelu);
}

/// Benchmarks attention with 32 query heads and 8 key/value heads of width 128.
fn attend(c: &mut Criterion) {
    let device = Device::default();
    let mut group = group(c, "attention");
    for (name, queries, keys) in [("decode_1x1024", 1, 1024), ("prefill_320x320", 320, 320)] {
        let query = random([1, 32, queries, 128], &device);
        let [key, value] = [(); 2].map(|()| random([1, 8, keys, 128], &device));
        let causal = (queries > 1)
            .then(|| Tensor::<2, Bool>::tril_mask([queries, keys], 0, &device).reshape([1, 1, queries, keys]));
        // The time of a decode step depends on the size of the keys and values that it reads. The time of a prefill
        // depends on the number of scores.
        let throughput = match queries {
            1 => Throughput::Bytes((2 * 8 * keys * 128 * F32) as u64),
            _ => Throughput::Elements((32 * queries * keys) as u64),
        };
        bench(&mut group, name, throughput, &device, || {
            attention(black_box(query.clone()), key.clone(), value.clone(), causal.clone(), Activations::F32)
        });
    }
}

/// Benchmarks appending one token in place. The time must not depend on the number of cached tokens.
fn append(c: &mut Criterion) {
    let device = Device::default();
    let mut group = group(c, "kv_cache");
    let capacity = 4096;
    let token = random([1, 8, 1, 128], &device);
    let mut cache = KvCache::new(1, vec![0], capacity);
    let bytes = KvCache::bytes(1, 1, 8, 1, 128, DType::F32) as u64;
    let mut len = 0;
    bench(&mut group, "append_1_of_4096", Throughput::Bytes(bytes), &device, || {
        if len == capacity {
            (cache, len) = (KvCache::new(1, vec![0], capacity), 0);
        }
        len += 1;
        drop(cache.layer(0).append(black_box(token.clone()), token.clone()));
    });
}

criterion_group!(benches, linear, elementwise, attend, append);
criterion_main!(benches);
