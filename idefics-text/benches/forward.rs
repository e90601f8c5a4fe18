//! Benchmarks one of the 32 layers of Mistral-7B, and four of the 32 layers of idefics-9b together with the gated layer
//! before them: `cargo bench -p idefics-text`.

#![allow(clippy::disallowed_methods)] // a benchmark may wait for the device

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::{DType, Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_text::{AlphaType, ContextCache, ContextView, CrossAttentionConfig, DecoderStack, KvCache, TextConfig};

const CAPACITY: usize = 1024;

fn forward(c: &mut Criterion) {
    let device = Device::default(); // BURN_DEVICE chooses it: flex, cuda or wgpu
    // A vocabulary of 1: the embedding table is not used.
    let config = TextConfig { num_hidden_layers: 1, vocab_size: 1, ..TextConfig::mistral_7b() };
    let decoder = config.init(&device).expect("the configuration of Mistral-7B is valid");
    let inputs_embeds = |seq| Tensor::<3>::random([1, seq, config.hidden_size], Distribution::Default, &device);
    let mut group = c.benchmark_group("text/mistral_7b_1_of_32_layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));

    for seq in [32, 128] {
        let inputs_embeds = inputs_embeds(seq);
        group.throughput(Throughput::Elements(seq as u64));
        group.bench_function(BenchmarkId::new(format!("prefill_{seq}"), format!("{device:?}")), |b| {
            b.iter(|| {
                let hidden_states =
                    decoder.forward(black_box(inputs_embeds.clone()), &mut config.cache(vec![0], CAPACITY));
                device.sync().expect("the device finishes");
                hidden_states // kept alive until after the sync, so that the work is not skipped
            });
        });
    }

    // One token reads every weight of the layer once.
    let [d, inner] = [config.hidden_size, config.intermediate_size];
    let kv_width = config.n_kv_heads() * config.head_dim();
    let n_weights = 2 * d * d + 2 * d * kv_width + 3 * d * inner;
    let token = inputs_embeds(1);
    let mut cache = config.cache(vec![0], CAPACITY);
    decoder.forward(inputs_embeds(128), &mut cache);
    group.throughput(Throughput::Bytes((n_weights * DType::F32.size()) as u64));
    group.bench_function(BenchmarkId::new("decode_after_128", format!("{device:?}")), |b| {
        b.iter(|| {
            if cache.len() == CAPACITY {
                cache = config.cache(vec![0], CAPACITY);
                decoder.forward(inputs_embeds(128), &mut cache);
            }
            let hidden_states = decoder.forward(black_box(token.clone()), &mut cache);
            device.sync().expect("the device finishes");
            hidden_states
        });
    });
}

/// Benchmarks a decode step of IDEFICS v1 with one visible image of 64 vectors, and one without images.
fn gated_decode(c: &mut Criterion) {
    const VECTORS: usize = 64;
    let device = Device::default();
    let config = CrossAttentionConfig {
        text: TextConfig { num_hidden_layers: 4, vocab_size: 1, ..TextConfig::llama_7b() },
        additional_vocab_size: 0,
        cross_layer_interval: 4,
        qk_layer_norms: true,
        alpha_type: AlphaType::Float,
        context_size: 1280,
    };
    let decoder = config.init(&device).expect("the configuration of idefics-9b is valid");
    let d = config.text.hidden_size;
    let random = |seq: usize, width: usize| Tensor::<3>::random([1, seq, width], Distribution::Default, &device);
    let mut group = c.benchmark_group("text/idefics_9b_4_of_32_layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(8));
    for n_images in [0, 1] {
        let view = ContextView::new(1, 128, n_images, vec![true; 128 * n_images]);
        let prompt = |cache: &mut KvCache| {
            if n_images > 0 {
                let layers = decoder.context_key_values(&random(n_images * VECTORS, 1280));
                cache.set_context(Some(ContextCache::new(layers, VECTORS, view.clone(), 0)));
            }
            decoder.forward(random(128, d), cache);
        };
        let fresh = || config.text.cache(vec![0], CAPACITY);
        let mut cache = fresh();
        prompt(&mut cache);
        let token = random(1, d);
        group.bench_function(BenchmarkId::new(format!("decode_{n_images}_images"), format!("{device:?}")), |b| {
            b.iter(|| {
                if cache.len() == CAPACITY {
                    cache = fresh();
                    prompt(&mut cache);
                }
                let hidden_states = decoder.forward(black_box(token.clone()), &mut cache);
                device.sync().expect("the device finishes");
                hidden_states
            });
        });
    }
}

criterion_group!(benches, forward, gated_decode);
criterion_main!(benches);
