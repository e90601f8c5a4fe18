//! Memory and memory bandwidth of the machine, and the program's peak memory use.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use idefics_generate::nn::kept_bytes;
use idefics_generate::{Device, DeviceChoice, device_memory_bytes};
use rayon::prelude::*;
use sysinfo::System;

/// Number of f32 values to read in the bandwidth measurement: 1 GiB, more than any last-level cache holds.
const VALUES: usize = 1 << 28;
/// Number of passes over the values; the fastest one counts.
const PASSES: usize = 24;

/// Memory bandwidth in GB/s when all threads read. Allocates 1 GiB temporarily.
pub(crate) fn memory_bandwidth_gb_s() -> f64 {
    let values: Vec<f32> = (0..VALUES).into_par_iter().map(|index| (index % 8) as f32).collect();
    let pass = |_| {
        let clock = Instant::now();
        black_box(idefics_kernels::stream_sum(black_box(&values)));
        size_of_val(values.as_slice()) as f64 / clock.elapsed().as_secs_f64() / 1e9
    };
    (0..PASSES).map(pass).fold(0.0, f64::max)
}

/// Available memory of the device in bytes. CPU: available main memory, limited by the cgroup. CUDA: free memory as
/// reported by `nvidia-smi`. Other devices, and CUDA without `nvidia-smi`: total memory, or `u64::MAX` if unknown.
pub(crate) fn available_memory_bytes(choice: DeviceChoice, device: &Device) -> u64 {
    let total = || device_memory_bytes(device).unwrap_or(u64::MAX);
    match choice {
        DeviceChoice::Cpu => free_memory_bytes(),
        DeviceChoice::Cuda(_) => free_cuda_bytes().unwrap_or_else(total),
        _ => total(),
    }
}

/// Memory for weights, caches and activations in bytes: [`available_memory_bytes`] minus the buffers that operations
/// on the device keep for reuse.
pub(crate) fn usable_memory_bytes(choice: DeviceChoice, device: &Device) -> u64 {
    available_memory_bytes(choice, device).saturating_sub(kept_bytes(device))
}

/// Available main memory in bytes, limited by the cgroup if there is one.
pub(crate) fn free_memory_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    // `rss`, not the group's total: its page cache can be dropped.
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    system.available_memory().min(group)
}

/// Total main memory in bytes, limited by the cgroup if there is one.
pub(crate) fn main_memory_bytes() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory).min(system.total_memory())
}

/// The least free memory, in bytes, among the CUDA devices that the process may use; `None` if `nvidia-smi` does not
/// report it. CUDA and `nvidia-smi` may number devices differently, so every device is assumed to have only this much.
pub(crate) fn free_cuda_bytes() -> Option<u64> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=memory.free", "--format=csv,noheader,nounits"]);
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        command.arg(format!("--id={visible}"));
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| min_mebibytes(&String::from_utf8_lossy(&output.stdout)))?
}

/// The smallest number in a list with one number of MiB per line, in bytes; `None` if a line is not a number.
fn min_mebibytes(listing: &str) -> Option<u64> {
    let free: Option<Vec<u64>> = listing.lines().map(|line| line.trim().parse().ok()).collect();
    free?.into_iter().min()?.checked_mul(1 << 20)
}

/// Peak resident memory of the process in bytes, including memory-mapped files; `None` if the system does not report
/// it.
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
