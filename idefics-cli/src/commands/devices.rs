//! `idefics devices`

use std::io::{self, Write};

use idefics_generate::{DeviceInfo, DeviceKind, Precision};

use crate::args::Global;
use crate::failure::Failure;
use crate::machine::main_memory_bytes;
use crate::output::format_bytes;

/// Prints a table with one line per device, or one JSON object per line.
pub(crate) fn run(global: &Global) -> Result<(), Failure> {
    let mut devices = DeviceInfo::all();
    for device in devices.iter_mut().filter(|device| device.kind == DeviceKind::Cpu) {
        device.memory_bytes = Some(main_memory_bytes());
    }
    let mut stdout = io::stdout().lock();
    if global.json {
        for device in &devices {
            writeln!(stdout, "{}", serde_json::to_string(device).map_err(io::Error::from)?)?;
        }
        return Ok(());
    }
    let bytes = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| format_bytes(bytes as usize));
    let (largest, kernels) = ("largest tensor", "kernels");
    writeln!(
        stdout,
        "{:<10} {:<10} {:>10} {largest:>14}  {kernels:<7} {:<14} name",
        "device", "kind", "memory", "dtypes"
    )?;
    for DeviceInfo { device, name, kind, kernels, memory_bytes, largest_tensor_bytes, dtypes, .. } in &devices {
        let memory = bytes(*memory_bytes);
        let largest = if *kind == DeviceKind::Cpu { "-".to_owned() } else { bytes(*largest_tensor_bytes) };
        let dtypes = dtypes.iter().map(Precision::to_string).collect::<Vec<_>>().join(", ");
        let (device, kind) = (device.to_string(), kind.to_string());
        writeln!(stdout, "{device:<10} {kind:<10} {memory:>10} {largest:>14}  {kernels:<7} {dtypes:<14} {name}")?;
    }
    Ok(())
}
