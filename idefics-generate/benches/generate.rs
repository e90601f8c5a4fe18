//! Benchmarks of a whole Idefics2 model: encoding an image, prefill, decode steps and ranking. The weights are random,
//! because the speed does not depend on their values.

#![allow(clippy::disallowed_methods)] // a benchmark may wait for the device

use std::time::Duration;

use burn::tensor::Device;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use idefics_generate::processor::image::ImageTile;
use idefics_generate::{Idefics2, Idefics2Config, LogitsToKeep, Model, Prompts};

/// Returns a configuration that a laptop can measure in seconds. Compared with the 8b model, the decoder has an eighth
/// of the width and the vision tower a quarter. Each of them has two layers.
fn config() -> Idefics2Config {
    let mut config = Idefics2Config::idefics2_8b();
    config.text_config.num_hidden_layers = 2;
    config.text_config.hidden_size = 512;
    config.text_config.intermediate_size = 1792;
    config.text_config.num_attention_heads = 8;
    config.text_config.num_key_value_heads = Some(2);
    config.vision_config.num_hidden_layers = 2;
    config.vision_config.hidden_size = 288;
    config.vision_config.num_attention_heads = 4;
    config.vision_config.intermediate_size = 1076;
    config.resolved()
}

fn generate(c: &mut Criterion) {
    let device = Device::flex();
    let config = config();
    let model = Idefics2::new(&config, &device).expect("the configuration is valid");
    let (height, width) = (378, 504); // 27 × 36 = 972 patches
    let image = ImageTile::new(width, height, vec![0.5; 3 * height * width]).expect("the data has three planes");
    let mut ids = vec![1];
    ids.extend(std::iter::repeat_n(config.image_token_id, config.perceiver_config.resampler_n_latents));
    ids.extend((0..32).map(|id| 100 + id));
    let prompts = Prompts::pad_left(&[ids], 0).expect("the row is not empty");

    // The first call initialises the weights, so it is not measured.
    model.forward(&prompts, std::slice::from_ref(&image), LogitsToKeep::Last(1)).expect("the prompt fits");

    let mut group = c.benchmark_group("generate");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));

    group.throughput(Throughput::Elements(972));
    group.bench_function(BenchmarkId::new("encode_images", "378x504px_972p"), |b| {
        b.iter(|| {
            let features = model.encode_images(std::slice::from_ref(&image)).expect("the image has patches");
            device.sync().expect("the device finishes its work");
            features
        });
    });

    let features = model.encode_images(std::slice::from_ref(&image)).expect("the image has patches");
    group.throughput(Throughput::Elements(prompts.seq() as u64));
    group.bench_function(BenchmarkId::new("prefill", format!("{}_tokens", prompts.seq())), |b| {
        b.iter(|| {
            let mut cache = model.cache(&prompts, 0);
            let logits = model.prefill(&prompts, features.clone(), &mut cache).expect("the prompt fits");
            device.sync().expect("the device finishes its work");
            logits
        });
    });

    const STEPS: usize = 16;
    group.throughput(Throughput::Elements(STEPS as u64));
    group.bench_function(BenchmarkId::new("prefill_and_decode", format!("{STEPS}_tokens")), |b| {
        b.iter(|| {
            let mut cache = model.cache(&prompts, STEPS);
            let mut logits = model.prefill(&prompts, features.clone(), &mut cache).expect("the prompt fits");
            for _ in 0..STEPS {
                logits = model.decode(&[100], &mut cache).expect("the token fits");
            }
            device.sync().expect("the device finishes its work");
            logits
        });
    });

    // 100 labels of one to four tokens. Each group of ten labels has the same first token.
    let labels: Vec<Vec<u32>> = (0..100)
        .map(|label| (0..1 + label % 4).map(|at| 200 + label / 10 + 20 * at * (label % 10)).collect())
        .collect();
    group.throughput(Throughput::Elements(labels.len() as u64));
    group.bench_function(BenchmarkId::new("rank", format!("{}_labels", labels.len())), |b| {
        b.iter(|| (&model as &dyn Model).log_likelihoods(&prompts, features.clone(), &labels).expect("the labels fit"));
    });
    group.finish();
}

criterion_group!(benches, generate);
criterion_main!(benches);
