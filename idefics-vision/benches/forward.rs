//! The tower at the shape of idefics2-8b, cut to one of its 27 layers: `cargo bench -p idefics-vision`.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_vision::{PatchGrid, PatchLayout, VisionConfig};

fn forward(c: &mut Criterion) {
    let device = Device::default(); // BURN_DEVICE=flex|cuda|wgpu
    let config = VisionConfig { num_hidden_layers: 1, ..VisionConfig::siglip_so400m_980() };
    let tower = config.init(&device);
    let mut group = c.benchmark_group("vision/siglip_so400m_1_of_27_layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for (n_images, side) in [(1, 364), (2, 364)] {
        let grid = PatchGrid { rows: side / config.patch_size, cols: side / config.patch_size };
        let layout = PatchLayout::new(&vec![grid; n_images], config.positions_per_side());
        let pixel_values = Tensor::<4>::random([n_images, 3, side, side], Distribution::Default, &device);
        drop(tower.forward(pixel_values.clone(), &layout)); // weights are drawn at their first use
        device.sync().expect("the device finishes");
        group.throughput(Throughput::Elements((n_images * grid.patches()) as u64));
        group.bench_function(BenchmarkId::new(format!("{n_images}x{side}px"), format!("{device:?}")), |b| {
            b.iter(|| {
                let hidden_states = tower.forward(black_box(pixel_values.clone()), &layout);
                device.sync().expect("the device finishes");
                hidden_states // alive until after the sync, so that nothing is left out
            });
        });
    }
}

criterion_group!(benches, forward);
criterion_main!(benches);
