//! Memory and memory bandwidth of the machine, and the program's peak memory use.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use idefics_generate::nn::kept_bytes;
use idefics_generate::{Device, DeviceChoice, device_memory_bytes};
use rayon::prelude::*;
use sysinfo::System;

/// Number of f32 values that the bandwidth measurement reads: 1 GiB, more than any last-level cache holds.
const VALUES: usize = 1 << 28;
/// Number of passes over the values. The result is the rate of the fastest pass.
const PASSES: usize = 24;

/// Measures the memory bandwidth in GB/s while all threads read. Temporarily allocates 1 GiB.
pub(crate) fn memory_bandwidth_gb_s() -> f64 {
    let values: Vec<f32> = (0..VALUES).into_par_iter().map(|index| (index % 8) as f32).collect();
    let pass = |_| {
        let clock = Instant::now();
        black_box(idefics_kernels::stream_sum(black_box(&values)));
        size_of_val(values.as_slice()) as f64 / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..PASSES).map(pass).fold(0.0, f64::max)
}

/// Returns the available memory of the device in bytes. On the CPU, this is the available main memory, limited by the
/// cgroup. On CUDA, it is the free memory that `nvidia-smi` reports. On other devices, and on CUDA without
/// `nvidia-smi`, it is the total memory, or `u64::MAX` if that is unknown.
pub(crate) fn available_memory_bytes(choice: DeviceChoice, device: &Device) -> u64 {
    let total = || device_memory_bytes(device).unwrap_or(u64::MAX);
    match choice {
        DeviceChoice::Cpu => free_memory_bytes(),
        DeviceChoice::Cuda(_) => free_cuda_bytes().unwrap_or_else(total),
        _ => total(),
    }
}

/// Returns the memory for weights, caches and activations in bytes: [`available_memory_bytes`] minus the scratch
/// buffers that operations on the device keep for reuse.
pub(crate) fn usable_memory_bytes(choice: DeviceChoice, device: &Device) -> u64 {
    available_memory_bytes(choice, device).saturating_sub(kept_bytes(device))
}

/// Returns the available main memory in bytes, limited by the cgroup if there is one.
pub(crate) fn free_memory_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    // This subtracts `rss`, not the total use of the group, because the group's page cache can be dropped.
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    system.available_memory().min(group)
}

/// Returns the total main memory in bytes, limited by the cgroup if there is one.
pub(crate) fn main_memory_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory).min(system.total_memory())
}

/// Returns the free memory in bytes of the fullest CUDA device that the process may use, or `None` if `nvidia-smi` does
/// not report it. CUDA and `nvidia-smi` may number devices differently, so every device is assumed to have only this
/// much free memory.
pub(crate) fn free_cuda_bytes() -> Option<u64> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=memory.free", "--format=csv,noheader,nounits"]);
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        command.arg(format!("--id={visible}"));
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| min_mebibytes(&String::from_utf8_lossy(&output.stdout)))?
}

/// Returns the smallest number of a list in bytes. Each line of the list is a number of MiB. Returns `None` if a line
/// is not a number.
fn min_mebibytes(listing: &str) -> Option<u64> {
    let free: Option<Vec<u64>> = listing.lines().map(|line| line.trim().parse().ok()).collect();
    free?.into_iter().min()?.checked_mul(1 << 20)
}

/// Returns the peak resident memory of the process in bytes, including memory-mapped files, or `None` if the system
/// does not report it.
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
    fn free_memory_is_that_of_the_fullest_device() {
        assert_eq!(min_mebibytes("81000\n 20000 \n143000\n"), Some(20_000 << 20));
        assert!(
            ["", "[N/A]\n", "100\n[N/A]\n", "99999999999999999999\n"].map(min_mebibytes).iter().all(Option::is_none)
        );
    }
}
