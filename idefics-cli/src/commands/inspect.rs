//! `idefics inspect`

use std::io::{self, Write};
use std::path::Path;

use idefics_generate::inspect::{Inspection, inspect};
use idefics_generate::placement::{Block, FILES, Plan};
use idefics_generate::{DeviceChoice, Error, Precision};

use serde_json::json;

use crate::args::Global;
use crate::failure::Failure;
use crate::model::{self, ModelFolder};
use crate::placing;

/// Prints what a model folder holds, and where it would go.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let source = model::folder(global)?;
    let inspection = inspect(source.path(), global.pickles())?;
    let (choice, device) = global.device.open().map_err(Error::from)?;
    let dtype = global.dtype.on(choice, &device).map_err(Error::from)?;
    let precision = format!("{dtype:?}").to_lowercase();
    let mut stdout = io::stdout().lock();
    if global.json {
        let mut object = serde_json::to_value(&inspection).map_err(io::Error::from)?;
        object["device"] = choice.to_string().into();
        object["dtype"] = precision.into();
        for (name, plan) in plans(source.path(), global) {
            let places = plan.by_place().into_iter().map(|(place, blocks, bytes)| {
                let blocks: Vec<&str> = blocks.into_iter().map(|block| block.name.as_str()).collect();
                json!({"place": place, "bytes": bytes, "parts": blocks})
            });
            object["plans"][name] = places.collect();
        }
        writeln!(stdout, "{object}")?;
        return Ok(());
    }

    let Inspection { folder, family, parameters, file_bytes, files, dtypes, .. } = &inspection;
    match source {
        ModelFolder::Kept(_) => writeln!(stdout, "{}", folder.display())?,
        ModelFolder::Embedded(_) => writeln!(stdout, "the built-in model")?,
    }
    writeln!(stdout, "family      {family}")?;
    writeln!(stdout, "parameters  {parameters}")?;
    let dtypes: Vec<String> = dtypes.iter().map(|(dtype, tensors)| format!("{tensors} {dtype}")).collect();
    match files.len() {
        0 => writeln!(stdout, "weights     none here: what the configuration asks for")?,
        n => {
            let file = if n == 1 { "file" } else { "files" };
            writeln!(stdout, "weights     {} in {n} {file}, tensors: {}", size(*file_bytes), dtypes.join(", "))?;
        }
    }
    writeln!(
        stdout,
        "context     {} tokens, {} an image",
        inspection.max_position_embeddings, inspection.image_tokens
    )?;
    writeln!(stdout)?;
    writeln!(stdout, "{:<22} {:>8} {:>15} {:>12}", "part", "tensors", "parameters", "in files")?;
    for part in &inspection.parts {
        let bytes = size(part.file_bytes);
        writeln!(stdout, "{:<22} {:>8} {:>15} {bytes:>12}", part.name, part.tensors, part.parameters)?;
    }
    writeln!(stdout)?;
    writeln!(stdout, "{:<22} {:>15} {:>24}", "precision", "weights", "KV cache, 1000 tokens")?;
    let plans = plans(source.path(), global);
    for (name, bytes) in &inspection.loaded_bytes {
        let cache = inspection.cache_bytes_per_token.get(name).copied().unwrap_or(0) * 1000;
        let chosen = match plans.iter().find(|(planned, _)| planned == name) {
            Some((_, plan)) => format!("  {}", summary(plan)),
            None if *name == precision => format!("  <- all of it on {choice}"),
            None => String::new(),
        };
        writeln!(stdout, "{name:<22} {:>15} {:>24}{chosen}", size(*bytes), size(cache))?;
    }
    Ok(())
}

/// For each precision where the parts of a model go that may be spread.
fn plans(path: &Path, global: &Global) -> Vec<(&'static str, Plan)> {
    let places = global.max_memory.clone().unwrap_or_else(placing::main_memory);
    let of = |(name, precision): (&'static str, Precision)| {
        let dtype = precision.on(DeviceChoice::Cpu, &DeviceChoice::Cpu.open().ok()?.1).ok()?;
        Some((name, Plan::of_model(path, dtype, places.clone()).ok()?))
    };
    [("f32", Precision::F32), ("bf16", Precision::Bf16), ("f16", Precision::F16)].into_iter().filter_map(of).collect()
}

/// `12.50 GB on cpu, 147.40 GB from the files`
fn summary(plan: &Plan) -> String {
    let part = |(name, blocks, bytes): (&str, Vec<&Block>, u64)| {
        let bytes = size(bytes as usize);
        let place = if name == FILES { "from the files".to_owned() } else { format!("on {name}") };
        (!blocks.is_empty()).then(|| format!("{bytes} {place}"))
    };
    plan.by_place().into_iter().filter_map(part).collect::<Vec<_>>().join(", ")
}

/// Bytes in the largest unit that leaves a number above 1.
fn size(bytes: usize) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}
