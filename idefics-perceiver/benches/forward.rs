//! Benchmarks of the connector of idefics2-8b and the resampler of idefics-9b, with one layer each:
//! `cargo bench -p idefics-perceiver`.

#![allow(clippy::disallowed_methods)] // the benchmarks wait for the device

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_perceiver::{ConnectorConfig, PerceiverConfig, flamingo};

fn forward(c: &mut Criterion) {
    let device = Device::default(); // chosen by the environment variable BURN_DEVICE: flex, cuda or wgpu
    let config = ConnectorConfig {
        perceiver: PerceiverConfig { resampler_depth: 1, ..PerceiverConfig::idefics2_8b() },
        ..ConnectorConfig::idefics2_8b()
    };
    let connector = config.init(&device).expect("the configuration is valid");
    let mut group = c.benchmark_group("connector/idefics2_8b_1_of_3_layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for side in [196, 280_usize] {
        let patches = (side / 14).pow(2);
        let features = Tensor::<3>::random([1, patches, 1152], Distribution::Default, &device);
        drop(connector.forward(features.clone(), None)); // random weights are initialised at first use
        device.sync().expect("synchronisation succeeds");
        group.throughput(Throughput::Elements(patches as u64));
        group.bench_function(BenchmarkId::new(format!("1x{side}px"), format!("{device:?}")), |b| {
            b.iter(|| {
                let latents = connector.forward(black_box(features.clone()), None);
                device.sync().expect("synchronisation succeeds");
                latents // kept alive until after the sync, so that no work is skipped
            });
        });
    }
}

fn flamingo_forward(c: &mut Criterion) {
    let device = Device::default();
    let perceiver = flamingo::PerceiverConfig { resampler_depth: 1, ..flamingo::PerceiverConfig::idefics_9b() };
    let resampler = flamingo::ResamplerConfig { vision_embed_dim: 1280, perceiver }
        .init(&device)
        .expect("the configuration is valid");
    let mut group = c.benchmark_group("resampler/idefics_9b_1_of_6_blocks");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for n_images in [1, 4] {
        let features = Tensor::<3>::random([n_images, 257, 1280], Distribution::Default, &device);
        drop(resampler.forward(features.clone())); // random weights are initialised at first use
        device.sync().expect("synchronisation succeeds");
        group.throughput(Throughput::Elements((n_images * 257) as u64));
        group.bench_function(BenchmarkId::new(format!("{n_images}x257"), format!("{device:?}")), |b| {
            b.iter(|| {
                let latents = resampler.forward(black_box(features.clone()));
                device.sync().expect("synchronisation succeeds");
                latents
            });
        });
    }
}

criterion_group!(benches, forward, flamingo_forward);
criterion_main!(benches);
