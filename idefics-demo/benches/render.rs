//! Generates scenes, renders them and asks questions: `cargo bench -p idefics-demo`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_demo::{Example, Purpose, Scene, rng};

/// Widths and heights of the pictures, in pixels.
const SIZES: [(u32, u32); 2] = [(64, 64), (128, 128)];

/// Benchmarks generating, rendering, labelling and questions. Throughput is in pictures.
fn render(c: &mut Criterion) {
    let mut group = c.benchmark_group("demo");
    group.throughput(Throughput::Elements(1));
    for (width, height) in SIZES {
        let size = format!("{width}x{height}");
        let mut rng = rng(Purpose::Demo, 0, 0);
        group.bench_function(BenchmarkId::new("scene", &size), |b| b.iter(|| Scene::random(&mut rng, width, height)));
        let scenes: Vec<_> = (0..64).map(|_| Scene::random(&mut rng, width, height)).collect();
        let mut next = scenes.iter().cycle();
        let mut scene = || next.next().expect("the cycle does not end");
        group.bench_function(BenchmarkId::new("render", &size), |b| b.iter(|| black_box(scene()).render()));
        group
            .bench_function(BenchmarkId::new("patch_labels", &size), |b| b.iter(|| black_box(scene()).patch_labels(8)));
        group.bench_function(BenchmarkId::new("chat_of_4", &size), |b| {
            b.iter(|| Example::chat(&mut rng, vec![scene().clone()], 4));
        });
    }
    group.finish();
}

criterion_group!(benches, render);
criterion_main!(benches);
