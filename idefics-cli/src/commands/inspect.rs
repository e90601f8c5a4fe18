//! `idefics inspect`

use std::io::{self, Write};

use idefics_generate::inspect::{Inspection, PrecisionMemory, inspect};
use idefics_generate::{DeviceChoice, Error, WeightFormat};

use crate::args::Global;
use crate::failure::Failure;
use crate::machine::available_memory_bytes;
use crate::model::{self, ModelFolder};
use crate::output::size;

/// Prints what a model folder holds, and where it would go.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let source = model::folder(global)?;
    let (choice, device) = global.device.open().map_err(Error::from)?;
    let inspection = inspect(source.path(), choice, &device)?;
    let dtype = global.dtype.on(choice, &device).map_err(Error::from)?;
    let precision = match global.quantize {
        WeightFormat::None => dtype.map_or("as stored".to_owned(), |dtype| format!("{dtype:?}").to_lowercase()),
        format => format.to_string(),
    };
    let mut stdout = io::stdout().lock();
    if global.json {
        let mut object = serde_json::to_value(&inspection).map_err(io::Error::from)?;
        object["device"] = choice.to_string().into();
        object["dtype"] = precision.into();
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
    writeln!(
        stdout,
        "weights     {} in {} {}, tensors: {}",
        size(*file_bytes),
        files.len(),
        if files.len() == 1 { "file" } else { "files" },
        dtypes.join(", ")
    )?;
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
    let (cache, mapped) = ("KV cache, 1000 tokens", "of it in the file");
    writeln!(stdout, "{:<12} {:>12} {mapped:>18} {:>14} {cache:>22}", "precision", "weights", "while loading")?;
    for PrecisionMemory { name, weights, cache_bytes_per_token } in &inspection.precisions {
        let [all, mapped, loading] =
            [weights.total(), weights.mapped, weights.loading].map(|bytes| size(bytes as usize));
        let cache = size(1000 * cache_bytes_per_token);
        let chosen = if *name == precision { format!("  <- on {choice}") } else { String::new() };
        writeln!(stdout, "{name:<12} {all:>12} {mapped:>18} {loading:>14} {cache:>22}{chosen}")?;
    }
    if choice == DeviceChoice::Cpu {
        writeln!(stdout, "\navailable    {:>12}", size(available_memory_bytes(choice) as usize))?;
    }
    Ok(())
}
