//! Throughput of the kernels of a decode step, in bytes per second, compared with the memory bandwidth.
//!
//! `cargo bench -p idefics-kernels [-- FILTER]`. The memory bandwidth is measured first: all cores read a buffer larger
//! than the caches. Products cycle through several matrices that take one gigabyte together, so that every weight comes
//! from memory.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use idefics_kernels::formats::{Blocks, Dense, FourBit, FourBitType, GgufType, Int4, Int8, Q4, Weight};
use idefics_kernels::{
    DecodeAttention, Isa, IsaLevel, StridedView, decode_attention, linear, rms_norm, rope, stream_sum, swiglu,
};
use rayon::prelude::*;

/// Size in bytes of a buffer that is larger than the caches.
const BEYOND_CACHES: usize = 1 << 30;

/// Measures the memory bandwidth of all cores together, in GB/s.
fn limit() -> f64 {
    let buffer = vec![1f32; BEYOND_CACHES / 4];
    let pass = || {
        let start = Instant::now();
        black_box(stream_sum(black_box(&buffer)));
        BEYOND_CACHES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..10).map(|_| pass()).fold(0.0, f64::max)
}

/// Creates a weight with arbitrary content. The speed does not depend on the content.
fn weight(format: &str, d_out: usize, d_in: usize) -> Weight<'static> {
    let n = d_out * d_in;
    let codes = |n: usize| -> Vec<u8> { (0..n).into_par_iter().map(|i| ((i * 0x9E37) >> 7) as u8).collect() };
    match format {
        "f32" => Weight::F32(Dense::new(vec![0.01; n], d_out, d_in).unwrap()),
        "bf16" => Weight::Bf16(Dense::new(vec![bf16::from_f32(0.01); n], d_out, d_in).unwrap()),
        "f16" => Weight::F16(Dense::new(vec![f16::from_f32(0.01); n], d_out, d_in).unwrap()),
        "int8" => {
            let codes: Vec<i8> = codes(n).into_iter().map(u8::cast_signed).collect();
            Int8::new(codes, vec![0.01; d_out], d_out, d_in).unwrap().into()
        }
        "nf4" => FourBit::new(FourBitType::Nf4, codes(n / 2), vec![0.01; n / 64], d_out, d_in).unwrap().into(),
        "q4" => {
            let tiles = d_out.div_ceil(16) * d_in.div_ceil(32);
            let scales = vec![bf16::from_f32(1e-4); tiles * 16];
            Q4::new(codes(tiles * 256), scales, d_out, d_in).unwrap().into()
        }
        "int4" => {
            let group = NonZeroUsize::new(128).unwrap();
            let scales = [0.01, 8.0].repeat(n / 128);
            Int4::new(codes(n / 2), scales, group, [d_out, d_in]).unwrap().into()
        }
        name => {
            let kind = GgufType::ALL.into_iter().find(|kind| kind.name() == name).unwrap();
            let bytes = kind.row_bytes(d_in).unwrap() * d_out;
            Blocks::new(kind, codes(bytes), d_out, d_in).unwrap().into()
        }
    }
}

/// Times calls of `work`. Keeps the time per call of the fastest batch in `best`, in seconds.
fn timed(calls: u64, best: &Cell<f64>, mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..calls {
        work();
    }
    let elapsed = start.elapsed();
    best.set(best.get().min(elapsed.as_secs_f64() / calls as f64));
    elapsed
}

fn products(c: &mut Criterion) {
    let limit = limit();
    let cap = IsaLevel::cap().unwrap();
    println!(
        "memory bandwidth of all cores: {limit:.1} GB/s; instruction set: {} (cap: {})",
        Isa::best().name(),
        cap.map_or("none", IsaLevel::name)
    );
    let mut group = c.benchmark_group("linear");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    for (d_out, d_in) in [(4096, 14336), (14336, 4096)] {
        for format in ["f32", "bf16", "f16", "int8", "nf4", "q4", "int4", "Q4_0", "Q8_0", "Q4_K", "Q6_K"] {
            let bytes = weight(format, d_out, d_in).bytes();
            let weights: Vec<_> = (0..BEYOND_CACHES.div_ceil(bytes)).map(|_| weight(format, d_out, d_in)).collect();
            for n_rows in [1, 4, 8] {
                let (x, mut out) = (vec![0.5; n_rows * d_in], vec![0.0; n_rows * d_out]);
                let best = Cell::new(f64::INFINITY);
                group.throughput(Throughput::BytesDecimal(bytes as u64));
                group.bench_function(BenchmarkId::new(format!("{format}/{d_out}x{d_in}"), n_rows), |b| {
                    let mut turn = weights.iter().cycle();
                    b.iter_custom(|calls| {
                        timed(calls, &best, || linear(&x, n_rows, turn.next().unwrap(), None, black_box(&mut out)))
                    });
                });
                let rate = bytes as f64 / best.get() / 1e9;
                if rate > 0.0 {
                    println!("fastest batch: {rate:.1} GB/s, {:.2} of the memory bandwidth", rate / limit);
                }
            }
        }
    }
    group.finish();
}

fn small_products(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear in cache");
    for (d_out, d_in) in [(576, 576), (1536, 576), (2048, 2048)] {
        for format in ["f32", "bf16", "int8", "nf4", "q4"] {
            let weight = weight(format, d_out, d_in);
            let (x, mut out) = (vec![0.5; d_in], vec![0.0; d_out]);
            group.throughput(Throughput::BytesDecimal(weight.bytes() as u64));
            group.bench_function(format!("{format}/{d_out}x{d_in}"), |b| {
                b.iter(|| linear(&x, 1, &weight, None, black_box(&mut out)));
            });
        }
    }
    group.finish();
}

/// Measures all matrix products in one decode step of a decoder with 30 layers of width 576, including its output head.
/// A step of `idefics bench` with this shape takes longer; the additional time is not spent on reading weights.
fn products_of_a_small_step(c: &mut Criterion) {
    let layer = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
    let shapes: Vec<_> = layer.into_iter().cycle().take(30 * layer.len()).chain([(49280, 576)]).collect();
    let mut group = c.benchmark_group("products of a small step");
    for format in ["bf16", "int8", "nf4", "q4", "Q4_0", "Q4_1", "Q5_0", "Q8_0"] {
        let weights: Vec<_> = shapes.iter().map(|&(d_out, d_in)| weight(format, d_out, d_in)).collect();
        let (x, mut out) = (vec![0.5; 1536], vec![0.0; 49280]);
        group.throughput(Throughput::BytesDecimal(weights.iter().map(|weight| weight.bytes() as u64).sum()));
        group.bench_function(format, |b| {
            b.iter(|| {
                rayon::scope(|_| {
                    for (weight, &(d_out, d_in)) in weights.iter().zip(&shapes) {
                        linear(&x[..d_in], 1, weight, None, black_box(&mut out[..d_out]));
                    }
                });
            });
        });
    }
    group.finish();
}

fn many_rows(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear, many rows");
    group.sample_size(10);
    let (d_out, d_in) = (4096, 4096);
    for format in ["f32", "bf16", "int8", "nf4", "q4", "int4", "Q4_0", "Q8_0", "Q4_K"] {
        let weight = weight(format, d_out, d_in);
        for n_rows in [16, 64, 512] {
            let (x, mut out) = (vec![0.5; n_rows * d_in], vec![0.0; n_rows * d_out]);
            // A product takes two operations per weight and row.
            group.throughput(Throughput::Elements((2 * n_rows * d_out * d_in) as u64));
            group.bench_function(BenchmarkId::new(format, n_rows), |b| {
                b.iter(|| linear(&x, n_rows, &weight, None, black_box(&mut out)));
            });
        }
    }
    group.finish();
}

fn rest_of_a_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    let weight = vec![1.0; 4096];
    let mut hidden = vec![0.5; 4096];
    let x = hidden.clone();
    group.bench_function("rms_norm/4096", |b| b.iter(|| rms_norm(&x, &weight, 1e-5, black_box(&mut hidden))));
    let up = vec![0.5; 14336];
    let mut gate = vec![0.5; 14336];
    group.bench_function("swiglu/14336", |b| b.iter(|| swiglu(black_box(&mut gate), &up)));
    let (cos, sin) = (vec![0.8; 128], vec![0.6; 128]);
    let mut states = vec![0.5; 32 * 128];
    group.bench_function("rope/32x128", |b| b.iter(|| rope(black_box(&mut states), [1, 32, 128], &cos, &sin)));
    let (heads, kv_heads, head_dim, capacity) = (32, 8, 128, 4096);
    let cache = vec![0.5; kv_heads * capacity * head_dim];
    let query = vec![0.1; heads * head_dim];
    for len in [128, 1024, 4096] {
        let cached = StridedView::contiguous(&cache, kv_heads, capacity, head_dim);
        let attention = DecodeAttention {
            query: &query,
            keys: cached,
            values: cached,
            batch: 1,
            heads,
            kv_heads,
            len,
            head_dim,
            attention_mask: None,
            scale: 0.088,
        };
        let mut out = vec![0.0; heads * head_dim];
        group.throughput(Throughput::BytesDecimal((2 * 4 * kv_heads * len * head_dim) as u64));
        group.bench_function(BenchmarkId::new("decode_attention/32x8x128", len), |b| {
            b.iter(|| decode_attention(&attention, black_box(&mut out)));
        });
    }
    group.finish();
}

criterion_group!(benches, products, small_products, products_of_a_small_step, many_rows, rest_of_a_step);
criterion_main!(benches);
