//! Measures the memory of a training step with quantised weights: only norms are trained, linear layers stay quantised.
//!
//! `cargo run --release -p idefics-train --example packed_step -- [nf4|fp4|q4|int8] [kept|recomputed] [LAYERS]
//! [TOKENS]`

#![allow(clippy::disallowed_methods, clippy::print_stdout)] // an example may wait for the device and print

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use idefics_generate::perceiver::PerceiverConfig;
use idefics_generate::text::TextConfig;
use idefics_generate::vision::VisionConfig;
use idefics_generate::{AssembledModel, Idefics2, Idefics2Config, WeightFormat};
use idefics_nn::LoadOptions;
use idefics_nn::checkpoint::{Quantization, fill_random};
use idefics_train::{
    LabelRecipe, LabelledText, Trainable, Trainer, TrainingBatch, TrainingConfig, training_gradients_checkpointed,
};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize, default: &str| arguments.get(at).map_or(default, String::as_str).to_owned();
    let WeightFormat::Packed(format) = argument(0, "nf4").parse()? else {
        return Err("the format must be one of nf4, fp4, q4 and int8".into());
    };
    let recomputes = match argument(1, "kept").as_str() {
        "kept" => false,
        "recomputed" => true,
        other => return Err(format!("{other:?}: expected kept or recomputed").into()),
    };
    let (layers, tokens): (usize, u32) = (argument(2, "10").parse()?, argument(3, "128").parse()?);

    let config = Idefics2Config {
        image_token_id: 999,
        text_config: TextConfig {
            vocab_size: 1000,
            hidden_size: 2048,
            intermediate_size: 8192,
            num_hidden_layers: layers,
            num_attention_heads: 16,
            num_key_value_heads: Some(4),
            ..TextConfig::mistral_7b()
        },
        vision_config: VisionConfig {
            hidden_size: 64,
            intermediate_size: 64,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            image_size: 28,
            ..VisionConfig::siglip_so400m_980()
        },
        perceiver_config: PerceiverConfig {
            hidden_size: 2048,
            resampler_n_latents: 4,
            resampler_depth: 1,
            resampler_n_heads: 2,
            resampler_head_dim: 8,
            num_key_value_heads: 1,
            ..PerceiverConfig::idefics2_8b()
        },
        ..Idefics2Config::default()
    };
    let quantization = Quantization { format, double_quant: false, modules_to_not_convert: vec!["lm_head".to_owned()] };
    let options = LoadOptions { quantize: Some(quantization), ..LoadOptions::default() };
    let device = Device::flex().autodiff();
    let model = fill_random(Idefics2::new(&config, &device)?, &options, 1, |_| ())?;
    let (held, in_f32) = (model.weight_bytes(), 4 * model.num_params());
    println!("weights: {:.0} MB as held, {:.0} MB in f32", megabytes(held), megabytes(in_f32));

    // Freezes everything except norms, including those of every decoder layer.
    let frozen = ["model.text_model.embed_tokens.", "model.vision_model.", "lm_head."].map(str::to_owned).to_vec();
    let mut trainer = Trainer::new(model, TrainingConfig { frozen, ..TrainingConfig::new(2) })?;
    let ids: Vec<u32> = (0..tokens).map(|slot| 3 + slot * 17 % 900).collect();
    let labels = ids.iter().map(|&id| i64::from(id)).collect();
    let batch = TrainingBatch::padded(&[LabelledText { ids, labels }], Vec::new(), LabelRecipe::default(), 0)?;

    println!("resident before the step: {:.0} MB", resident("VmRSS")?);
    // Resets the peak of the memory, so that only the step below is measured.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let clock = Instant::now();
    let report = trainer.step(std::slice::from_ref(&batch), |model: &Idefics2, batch| {
        if recomputes { training_gradients_checkpointed(model, batch) } else { model.training_gradients(batch) }
    })?;
    println!("step: loss {:.3}, {:.1} s", report.loss, clock.elapsed().as_secs_f64());
    println!("peak of the step: {:.0} MB", resident("VmHWM")?);
    Ok(())
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Reads a memory value from `/proc/self/status`, in megabytes.
fn resident(line: &str) -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kibibytes: f64 = value.and_then(|value| value.trim().strip_suffix(" kB")).unwrap_or("0").parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}
