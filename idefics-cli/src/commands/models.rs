//! `idefics models`

use std::io::{self, Write};

use idefics_generate::nn::PackedFormat;
use idefics_generate::nn::burn::tensor::DType;
use idefics_generate::{DeviceChoice, Error, ModelConfig, PublicModel, WeightFormat, WeightOptions};
use idefics_hub::{HubOptions, cached_snapshot};
use serde_json::json;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::format_bytes;

/// Prints a table with one line per public checkpoint, or one JSON object per line.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let hub = HubOptions::from_env().map_err(Error::from)?;
    let quantized = |format| WeightOptions { quantize: WeightFormat::Packed(format), ..WeightOptions::default() };
    let formats = [
        ("bf16", WeightOptions::from(DType::BF16)),
        ("int8", quantized(PackedFormat::Int8)),
        ("q4", quantized(PackedFormat::Q4)),
    ];
    let (_, device) = DeviceChoice::Cpu.open().map_err(Error::from)?;
    let mut stdout = io::stdout().lock();
    if !global.json {
        write!(stdout, "{:<46} {:>10}", "model", "parameters")?;
        formats.iter().try_for_each(|(name, _)| write!(stdout, " {name:>10}"))?;
        writeln!(stdout, "  in the cache")?;
    }
    for model in PublicModel::ALL {
        let config = model.config();
        let parameters = parameters(&config)?;
        let bytes = |(_, options): &(_, WeightOptions)| Ok(config.memory(None, &device, *options)?.total());
        let weight_bytes: Vec<u64> = formats.iter().map(bytes).collect::<Result<_, Error>>()?;
        for repo in model.repos {
            let snapshot = cached_snapshot(&hub, repo, None);
            if global.json {
                let named = formats.iter().map(|(name, _)| (*name).to_owned()).zip(weight_bytes.iter().copied());
                let object = json!({
                    "model": repo,
                    "name": model.name,
                    "family": config.family().model_type(),
                    "parameters": parameters,
                    "weight_bytes": named.collect::<std::collections::BTreeMap<String, u64>>(),
                    "cached": snapshot,
                });
                writeln!(stdout, "{object}")?;
                continue;
            }
            write!(stdout, "{repo:<46} {:>8.2} B", parameters as f64 / 1e9)?;
            weight_bytes.iter().try_for_each(|bytes| write!(stdout, " {:>10}", format_bytes(*bytes as usize)))?;
            writeln!(stdout, "  {}", if snapshot.is_some() { "yes" } else { "no" })?;
        }
    }
    Ok(())
}

/// Counts the parameters of a model. Tied parameters count once.
fn parameters(config: &ModelConfig) -> Result<usize, Failure> {
    let (_, device) = DeviceChoice::Cpu.open().map_err(Error::from)?;
    let tied = config.family().tied();
    let mut parameters = 0;
    config.assemble(&device).map_err(Error::from)?.parameter_shapes(&mut |name, shape| {
        if tied.iter().all(|(tensor, _)| *tensor != name) {
            parameters += shape.num_elements();
        }
    });
    Ok(parameters)
}
