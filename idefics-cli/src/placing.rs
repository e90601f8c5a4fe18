//! Where the parts of a model may go.

use idefics_generate::DeviceChoice;
use idefics_generate::placement::{Place, Places};

use crate::args::Global;
use crate::failure::Failure;

/// The places of `--max-memory`, or the main memory.
pub(crate) fn places(global: &Global, choice: DeviceChoice) -> Result<Places, Failure> {
    match (&global.max_memory, choice) {
        (Some(places), _) => Ok(places.clone()),
        (None, DeviceChoice::Cpu) => Ok(main_memory()),
        (None, choice) => {
            let example = format!("--max-memory {choice}=20GB,cpu=16GB");
            Err(Failure::usage(format!("say how much of the model {choice} takes, for example {example}")))
        }
    }
}

/// As much of the main memory as is free; nothing where the system does not say.
pub(crate) fn main_memory() -> Places {
    let place = available_bytes().and_then(|bytes| Place::new("cpu", bytes).ok());
    Places(place.into_iter().collect())
}

/// Bytes that programs may take without the system swapping.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
