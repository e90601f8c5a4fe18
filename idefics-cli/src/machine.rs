//! What the machine can do, and what the program took of it.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use idefics_generate::nn::kept_bytes;
use idefics_generate::{Device, DeviceChoice, device_memory_bytes};
use rayon::prelude::*;
use sysinfo::System;

/// Values that are read: 1 GiB, more than any last-level cache holds.
const VALUES: usize = 1 << 28;
/// Passes over them, of which the fastest counts.
const PASSES: usize = 24;

/// How fast all threads together read memory, in GB/s; takes 1 GiB for the while.
pub(crate) fn memory_bandwidth_gb_s() -> f64 {
    let values: Vec<f32> = (0..VALUES).into_par_iter().map(|index| (index % 8) as f32).collect();
    let pass = |_| {
        let clock = Instant::now();
        black_box(idefics_kernels::read(black_box(&values)));
        size_of_val(values.as_slice()) as f64 / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..PASSES).map(pass).fold(0.0, f64::max)
}

/// Memory of the device that the program may take now, in bytes. On the CPU it is what the system has left, or a
/// control group leaves of it; on CUDA what `nvidia-smi` says is free; on others all that they have, or, where they do
/// not say, enough.
pub(crate) fn available_memory_bytes(choice: DeviceChoice, device: &Device) -> u64 {
    let of_device = || device_memory_bytes(device).unwrap_or(u64::MAX);
    match choice {
        DeviceChoice::Cpu => free_memory_bytes(),
        DeviceChoice::Cuda(_) => free_cuda_bytes().unwrap_or_else(of_device),
        _ => of_device(),
    }
}

/// As [`available_memory_bytes`], without what the device's operations keep for reuse: what weights, caches and activations
/// may take.
pub(crate) fn usable_memory_bytes(choice: DeviceChoice, device: &Device) -> u64 {
    available_memory_bytes(choice, device).saturating_sub(kept_bytes(device))
}

/// What the system has left of the main memory, or a control group leaves of it, in bytes.
pub(crate) fn free_memory_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    // What the group holds of files can be dropped.
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    system.available_memory().min(group)
}

/// All the main memory, or what a control group gives of it, in bytes.
pub(crate) fn main_memory_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory).min(system.total_memory())
}

/// Bytes that are free on the fullest of the CUDA devices that the process may use; `None` where `nvidia-smi` does not
/// say. Which number CUDA gives to which of them cannot be seen from outside, so none is taken to have more than that.
pub(crate) fn free_cuda_bytes() -> Option<u64> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=memory.free", "--format=csv,noheader,nounits"]);
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        command.arg(format!("--id={visible}"));
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| least_mebibytes(&String::from_utf8_lossy(&output.stdout)))?
}

/// The least of the numbers of MiB, one a line, in bytes; `None` if there is anything else.
fn least_mebibytes(listing: &str) -> Option<u64> {
    let free: Option<Vec<u64>> = listing.lines().map(|line| line.trim().parse().ok()).collect();
    free?.into_iter().min()?.checked_mul(1 << 20)
}

/// The most memory that the process has had, in bytes, files mapped into it included; `None` where the system does not
/// say.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_device_counts() {
        assert_eq!(least_mebibytes("81000\n 20000 \n143000\n"), Some(20_000 << 20));
        assert!(
            ["", "[N/A]\n", "100\n[N/A]\n", "99999999999999999999\n"].map(least_mebibytes).iter().all(Option::is_none)
        );
    }
}
