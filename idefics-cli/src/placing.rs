//! The devices and memory limits for `--device-map`.

use idefics_generate::nn::kept_bytes;
use idefics_generate::placement::{DeviceBudget, MaxMemory};
use idefics_generate::{Device, DeviceChoice, device_memory_bytes};

use crate::args::Global;
use crate::failure::Failure;
use crate::machine::{free_cuda_bytes, free_memory_bytes};

/// Returns the places of `--max-memory`. The default is the opened device, followed by main memory. If `--device auto`
/// chose a CUDA device, all CUDA devices come first.
///
/// # Errors
/// A usage failure if the free memory of the device is unknown.
pub(crate) fn places(global: &Global, choice: DeviceChoice, device: &Device) -> Result<MaxMemory, Failure> {
    if let Some(places) = &global.max_memory {
        return Ok(places.clone());
    }
    let devices: Vec<DeviceChoice> = match (choice, global.device) {
        (DeviceChoice::Cpu, _) => Vec::new(),
        (DeviceChoice::Cuda(_), DeviceChoice::Auto) => {
            (0..).map(DeviceChoice::Cuda).take_while(|device| device.open().is_ok()).collect()
        }
        _ => vec![choice],
    };
    let free = match choice {
        DeviceChoice::Cpu => Some(0),
        DeviceChoice::Cuda(_) => free_cuda_bytes(),
        _ => device_memory_bytes(device),
    };
    let Some(free) = free else {
        let example = format!("--max-memory {choice}=20GB,cpu=16GB");
        return Err(Failure::usage(format!("the free memory of {choice} is unknown; give a limit, as in {example}")));
    };
    let devices = devices.into_iter().filter_map(|device| place(device, free));
    Ok(MaxMemory(devices.chain(main_memory().0).collect()))
}

/// Returns main memory as the only place.
pub(crate) fn main_memory() -> MaxMemory {
    let kept = DeviceChoice::Cpu.open().map_or(0, |(_, device)| kept_bytes(&device));
    MaxMemory(place(DeviceChoice::Cpu, free_memory_bytes().saturating_sub(kept)).into_iter().collect())
}

/// Returns a place with nine tenths of a device's free memory. The rest is left for activations and KV caches. During
/// graph capture, there are two KV caches.
fn place(device: DeviceChoice, free: u64) -> Option<DeviceBudget> {
    DeviceBudget::new(&device.to_string(), free / 10 * 9).ok()
}
