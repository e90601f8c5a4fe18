//! `cargo xtask compare-activations`: the effect of int8 activations on the logits of every case.

use std::process::ExitCode;

use anyhow::Result;
use burn::tensor::{DType, Device, Tensor};
use idefics_generate::nn::{Activations, PackedFormat};
use idefics_generate::{DeviceChoice, Idefics, WeightFormat, WeightOptions};
use serde_json::{Value, json};

use super::case::Case;
use super::committed_cases;
use super::stages::{floats, process_options};

/// Measure the error of logits with int8 and q4 weights, each with f32 and with int8 activations.
///
/// The exact logits are computed with f32 weights and activations. Every committed case with unquantised weights is
/// measured. The error is the sum of squared differences divided by the sum of squared exact logits, over all real
/// tokens. A token counts as changed if its most likely next token differs.
#[derive(clap::Args)]
#[command(after_help = "Example: cargo xtask compare-activations --json")]
pub(crate) struct Args {
    /// Print one JSON object per case and weight format.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    match compare(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args) -> Result<()> {
    let (_, device) = DeviceChoice::Cpu.open()?;
    if !args.json {
        println!("{:<32} {:<6} {:>10} {:>10} {:>8} {:>8}", "case", "weights", "f32", "int8", "changed", "tokens");
    }
    for folder in committed_cases()? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let case = Case::read(&folder)?;
        if !case.runs_model() || is_quantized(&case)? {
            continue; // skips processor-only cases and quantised checkpoints
        }
        let exact = logits(&case, PLAIN, &device)?;
        for format in [PackedFormat::Int8, PackedFormat::Q4] {
            let quantize = WeightFormat::Packed(format);
            let weights = WeightOptions { quantize, ..PLAIN };
            let rounded = WeightOptions { activations: Activations::Int8, ..weights };
            let (weights_error, _) = error(&exact, &logits(&case, weights, &device)?);
            let (total_error, changed) = error(&exact, &logits(&case, rounded, &device)?);
            let tokens = exact.len();
            if args.json {
                let row = json!({"case": name, "weights": quantize.to_string(), "f32_activations": weights_error,
                    "int8_activations": total_error, "changed_choices": changed, "tokens": tokens});
                println!("{row}");
            } else {
                println!(
                    "{name:<32} {quantize:<6} {weights_error:>10.2e} {total_error:>10.2e} {changed:>8} {tokens:>8}"
                );
            }
        }
    }
    Ok(())
}

/// Whether the checkpoint contains quantised weights.
fn is_quantized(case: &Case) -> Result<bool> {
    let config: Value = serde_json::from_slice(&std::fs::read(case.checkpoint.join("config.json"))?)?;
    Ok(config.get("quantization_config").is_some_and(|config| !config.is_null()))
}

/// Options for unquantised f32 weights.
const PLAIN: WeightOptions = WeightOptions { dtype: Some(DType::F32), ..WeightOptions::DEFAULT };

/// Computes the logits at every real (unpadded) token of the case's samples, `[tokens][vocab_size]`.
fn logits(case: &Case, weights: WeightOptions, device: &Device) -> Result<Vec<Vec<f32>>> {
    let weights = WeightOptions { pickles: case.weights(DType::F32)?.pickles, ..weights };
    let model = Idefics::from_folder(&case.checkpoint, device, weights, |_| ())?;
    let prepared = model.prepare(&case.file.samples, &process_options(case))?;
    let (prompts, logits): (_, Tensor<3>) = prepared.logits()?; // [batch, seq, vocab_size]
    let [_, seq, vocab_size] = logits.dims();
    let all = floats(logits);
    let rows = all.chunks(seq * vocab_size).zip(prompts.left_padding());
    Ok(rows.flat_map(|(row, &padding)| row.chunks(vocab_size).skip(padding).map(<[f32]>::to_vec)).collect())
}

/// Returns the relative squared error, and the number of positions where the most likely token differs.
fn error(exact: &[Vec<f32>], found: &[Vec<f32>]) -> (f64, usize) {
    let pairs = || exact.iter().flatten().zip(found.iter().flatten()).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let squares: f64 = pairs().map(|(exact, _)| exact * exact).sum();
    let differences: f64 = pairs().map(|(exact, found)| (exact - found).powi(2)).sum();
    let likeliest = |logits: &Vec<f32>| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let changed = exact.iter().zip(found).filter(|(exact, found)| likeliest(exact) != likeliest(found)).count();
    (differences / squares, changed)
}
