//! Benchmarks of the vision towers of idefics2-8b and idefics-9b, with one layer each: `cargo bench -p idefics-vision`.

#![allow(clippy::disallowed_methods)] // the benchmarks wait for the device

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_vision::{PatchGrid, PatchLayout, VisionConfig, clip};

fn forward(c: &mut Criterion) {
    let device = Device::default(); // chosen by the environment variable BURN_DEVICE: flex, cuda or wgpu
    let config = VisionConfig { num_hidden_layers: 1, ..VisionConfig::siglip_so400m_980() };
    let tower = config.init(&device).expect("the configuration is valid");
    let mut group = c.benchmark_group("vision/siglip_so400m_1_of_27_layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for (n_images, side) in [(1, 364), (2, 364)] {
        let grid = PatchGrid { rows: side / config.patch_size, cols: side / config.patch_size };
        let layout = PatchLayout::new(&vec![grid; n_images], config.positions_per_side());
        let pixel_values = Tensor::<4>::random([n_images, 3, side, side], Distribution::Default, &device);
        drop(tower.forward(pixel_values.clone(), &layout)); // random weights are initialised at first use
        device.sync().expect("synchronisation succeeds");
        group.throughput(Throughput::Elements((n_images * grid.patches()) as u64));
        group.bench_function(BenchmarkId::new(format!("{n_images}x{side}px"), format!("{device:?}")), |b| {
            b.iter(|| {
                let hidden_states = tower.forward(black_box(pixel_values.clone()), &layout);
                device.sync().expect("synchronisation succeeds");
                hidden_states // kept alive until after the sync, so that no work is skipped
            });
        });
    }
}

fn clip_forward(c: &mut Criterion) {
    let device = Device::default();
    let config = clip::VisionConfig { num_hidden_layers: 1, ..clip::VisionConfig::clip_vit_h_14() };
    let tower = config.init(&device).expect("the configuration is valid");
    let mut group = c.benchmark_group("vision/clip_vit_h_14_1_of_32_layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for n_images in [1, 2] {
        let pixel_values = Tensor::<4>::random([n_images, 3, 224, 224], Distribution::Default, &device);
        drop(tower.forward(pixel_values.clone())); // random weights are initialised at first use
        device.sync().expect("synchronisation succeeds");
        group.throughput(Throughput::Elements((n_images * config.vectors_per_image()) as u64));
        group.bench_function(BenchmarkId::new(format!("{n_images}x224px"), format!("{device:?}")), |b| {
            b.iter(|| {
                let hidden_states = tower.forward(black_box(pixel_values.clone()));
                device.sync().expect("synchronisation succeeds");
                hidden_states
            });
        });
    }
}

criterion_group!(benches, forward, clip_forward);
criterion_main!(benches);
