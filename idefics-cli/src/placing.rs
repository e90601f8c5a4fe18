//! Where the parts of a model may go.

use idefics_generate::DeviceChoice;
use idefics_generate::placement::{Place, Places};

use crate::args::Global;
use crate::failure::Failure;
use crate::machine::available_memory_bytes;

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

/// As much of the main memory as is free.
pub(crate) fn main_memory() -> Places {
    let place = Place::new("cpu", available_memory_bytes(DeviceChoice::Cpu));
    Places(place.into_iter().collect())
}
