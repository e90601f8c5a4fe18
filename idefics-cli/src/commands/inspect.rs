//! `idefics inspect`

use std::io::{self, Write};

use idefics_generate::Error;
use idefics_generate::inspect::{Inspection, inspect};

use crate::args::Global;
use crate::failure::Failure;
use crate::model::{self, ModelFolder};

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
    for (name, bytes) in &inspection.loaded_bytes {
        let cache = inspection.cache_bytes_per_token.get(name).copied().unwrap_or(0) * 1000;
        let chosen = if *name == precision { format!("  <- all of it on {choice}") } else { String::new() };
        writeln!(stdout, "{name:<22} {:>15} {:>24}{chosen}", size(*bytes), size(cache))?;
    }
    Ok(())
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
