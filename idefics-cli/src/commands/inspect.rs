//! `idefics inspect`

use std::io::{self, Write};

use idefics_checkpoint::Checkpoint;
use idefics_generate::inspect::{Inspection, PrecisionMemory, inspect};
use idefics_generate::placement::{Block, FILES, Plan};
use idefics_generate::{ModelConfig, WeightFormat};
use serde_json::{Value, json};

use crate::args::Global;
use crate::failure::Failure;
use crate::machine::available_memory_bytes;
use crate::model::{self, ModelFolder};
use crate::output::format_bytes;
use crate::{placing, scratch};

/// Prints the contents of a model folder, the memory that the model needs in each precision, and where its parts would
/// be placed.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let source = model::folder(global)?;
    let (choice, device, weights) = model::device_for(global, 0, |device, weights| {
        let path = source.path();
        let config = if path.is_dir() { ModelConfig::from_folder(path)? } else { ModelConfig::from_file(path)? };
        let checkpoint = Checkpoint::open_with(path, weights.pickles).ok();
        config.memory(checkpoint.as_ref(), device, weights)
    })?;
    let inspection = inspect(source.path(), global.pickles(), choice, &device)?;
    for warning in &inspection.warnings {
        say!("warning: {}", scratch::with_names(&warning.to_string()));
    }
    let precision = match global.quantize {
        WeightFormat::None => weights.dtype.map_or("as stored".to_owned(), |dtype| format!("{dtype:?}").to_lowercase()),
        format => format.to_string(),
    };
    // Families whose parts can be spread over devices are shown with a placement.
    let places = placing::places(global, choice, &device).unwrap_or_else(|_| placing::main_memory());
    let plan = |held: &PrecisionMemory| Plan::for_model(source.path(), held.options, &device, places.clone()).ok();
    let mut stdout = io::stdout().lock();
    if global.json {
        let mut object = serde_json::to_value(&inspection).map_err(io::Error::from)?;
        object["folder"] = match source {
            ModelFolder::Embedded(_) => Value::Null, // a temporary folder, which is removed at the end
            _ => scratch::with_names(&inspection.folder.display().to_string()).into(),
        };
        object["device"] = choice.to_string().into();
        object["dtype"] = precision.into();
        for (held, plan) in inspection.precisions.iter().filter_map(|held| Some((held, plan(held)?))) {
            let places = plan.by_place().into_iter().map(|(place, blocks, bytes)| {
                let blocks: Vec<&str> = blocks.into_iter().map(|block| block.name.as_str()).collect();
                json!({"place": place, "bytes": bytes, "parts": blocks})
            });
            object["plans"][held.name] = places.collect();
        }
        writeln!(stdout, "{object}")?;
        return Ok(());
    }

    let Inspection { folder, family, parameters, file_bytes, files, dtypes, .. } = &inspection;
    match source {
        ModelFolder::Kept(_) => writeln!(stdout, "{}", folder.display())?,
        ModelFolder::Embedded(_) | ModelFolder::Linked(_) => {
            writeln!(stdout, "{}", scratch::with_names(&folder.display().to_string()))?
        }
    }
    writeln!(stdout, "family      {family}")?;
    writeln!(stdout, "parameters  {parameters}")?;
    let dtypes: Vec<String> = dtypes.iter().map(|(dtype, tensors)| format!("{tensors} {dtype}")).collect();
    match files.len() {
        0 => writeln!(stdout, "weights     no files; sizes are computed from the configuration")?,
        n => {
            let file = if n == 1 { "file" } else { "files" };
            writeln!(
                stdout,
                "weights     {} in {n} {file}, tensors: {}",
                format_bytes(*file_bytes),
                dtypes.join(", ")
            )?;
        }
    }
    if !inspection.quantized.is_empty() {
        let formats: Vec<String> =
            inspection.quantized.iter().map(|(format, weights)| format!("{weights} {format}")).collect();
        writeln!(stdout, "quantised   linear layers: {}", formats.join(", "))?;
    }
    writeln!(
        stdout,
        "context     {} tokens, {} per image",
        inspection.max_position_embeddings, inspection.image_tokens
    )?;
    writeln!(stdout)?;
    writeln!(stdout, "{:<22} {:>8} {:>15} {:>12}", "part", "tensors", "parameters", "in files")?;
    for part in &inspection.parts {
        let bytes = format_bytes(part.file_bytes);
        writeln!(stdout, "{:<22} {:>8} {:>15} {bytes:>12}", part.name, part.tensors, part.parameters)?;
    }
    writeln!(stdout)?;
    let (cache, mapped) = ("KV cache, 1000 tokens", "mapped from files");
    writeln!(stdout, "{:<12} {:>12} {mapped:>18} {:>14} {cache:>22}", "precision", "weights", "while loading")?;
    for held in &inspection.precisions {
        let PrecisionMemory { name, weights, cache_bytes_per_token, .. } = held;
        let [all, mapped, loading] =
            [weights.total(), weights.mapped, weights.loading].map(|bytes| format_bytes(bytes as usize));
        let cache = format_bytes(1000 * cache_bytes_per_token);
        let is_chosen = *name == precision;
        let place = match plan(held) {
            Some(plan) => summary(&plan),
            None if is_chosen => format!("on {choice}"),
            None => String::new(),
        };
        let mark = if is_chosen { "<-" } else { "" };
        let line = format!("{name:<12} {all:>12} {mapped:>18} {loading:>14} {cache:>22}  {mark:<2} {place}");
        writeln!(stdout, "{}", line.trim_end())?;
    }
    writeln!(stdout)?;
    if inspection.kept_bytes > 0 {
        writeln!(
            stdout,
            "buffers      {:>12} at most are kept for reuse",
            format_bytes(inspection.kept_bytes as usize)
        )?;
    }
    if inspection.precisions.iter().any(|held| held.recording_bytes_per_token > 0) {
        writeln!(
            stdout,
            "capture      there are two KV caches while a decode step is captured (never with --no-replay)"
        )?;
    }
    let available = available_memory_bytes(choice, &device);
    if available < u64::MAX {
        writeln!(stdout, "available    {:>12}", format_bytes(available as usize))?;
    }
    Ok(())
}

/// Formats the bytes of each place, as in `12.50 GB on cpu, 147.40 GB from the files`.
fn summary(plan: &Plan) -> String {
    let part = |(name, blocks, bytes): (&str, Vec<&Block>, u64)| {
        let bytes = format_bytes(bytes as usize);
        let place = if name == FILES { "from the files".to_owned() } else { format!("on {name}") };
        (!blocks.is_empty()).then(|| format!("{bytes} {place}"))
    };
    plan.by_place().into_iter().filter_map(part).collect::<Vec<_>>().join(", ")
}
