//! Devices by name: the one place that knows which backends were compiled in.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};
use serde::{Serialize, Serializer};

/// `--device`: what to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best device that there is; see [`DeviceChoice::candidates`].
    #[default]
    Auto,
    /// All cores of the CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
    /// The Vulkan device of that number, with kernels in SPIR-V.
    Vulkan(usize),
    /// The device of that number of whichever interface wgpu takes, with kernels in WGSL; where Vulkan is compiled in
    /// and is that interface, in SPIR-V too.
    Wgpu(usize),
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device's name.
    #[error(
        "device {name:?}: expected auto, cpu, cuda, vulkan or wgpu, the last three with :N for another than the first"
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The program was built without the backend.
    #[error("device {device}: this program was built without it; build with --features {feature}")]
    NotBuilt {
        /// What was asked for.
        device: DeviceChoice,
        /// The Cargo feature.
        feature: &'static str,
    },
    /// The machine has no such device.
    #[error("device {device}: not found, this machine has {found} of that kind")]
    NotFound {
        /// What was asked for.
        device: DeviceChoice,
        /// How many there are.
        found: usize,
    },
    /// The device does not compute in that precision.
    #[error("device {device}: does not compute in {precision}, only in {}", list(able))]
    Precision {
        /// The device.
        device: DeviceChoice,
        /// What was asked for.
        precision: Precision,
        /// What it computes in.
        able: Vec<Precision>,
    },
    /// Not a precision's name.
    #[error("dtype {name:?}: expected auto, f32, bf16 or f16")]
    UnknownPrecision {
        /// What was asked for.
        name: String,
    },
}

/// `f32 and f16`
fn list(precisions: &[Precision]) -> String {
    precisions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { name: name.to_owned() };
        let (kind, index) = match name.split_once(':') {
            None => (name, None),
            Some((kind, index)) => (kind, Some(index.parse().map_err(|_| unknown())?)),
        };
        match (kind, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("vulkan", index) => Ok(Self::Vulkan(index.unwrap_or(0))),
            ("wgpu", index) => Ok(Self::Wgpu(index.unwrap_or(0))),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
            Self::Vulkan(index) => write!(formatter, "vulkan:{index}"),
            Self::Wgpu(index) => write!(formatter, "wgpu:{index}"),
        }
    }
}

/// By its name, as `--device` spells it.
impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl DeviceChoice {
    /// Opens the device; of [`DeviceChoice::Auto`] the first of the candidates.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`] or [`DeviceError::NotFound`].
    pub fn open(self) -> Result<(Self, Device), DeviceError> {
        Ok(self.candidates()?.swap_remove(0))
    }

    /// The devices that the choice may mean, best first, at least one. Of [`DeviceChoice::Auto`] CUDA devices, or
    /// where there is none other GPUs, discrete ones first, each card once, and last the CPU; never a software
    /// implementation of a GPU, which is slower than the CPU's own kernels. A caller who knows what a model takes picks the first that holds it.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`] or [`DeviceError::NotFound`].
    pub fn candidates(self) -> Result<Vec<(Self, Device)>, DeviceError> {
        let numbered = |choice: fn(usize) -> Self, found: Vec<Device>| {
            found.into_iter().enumerate().map(move |(index, device)| (choice(index), device)).collect::<Vec<_>>()
        };
        let one = |choice: fn(usize) -> Self, index: usize, found: Option<Vec<Device>>, feature| {
            let mut found = numbered(choice, found.ok_or(DeviceError::NotBuilt { device: self, feature })?);
            match found.len() {
                count if index < count => Ok(vec![found.swap_remove(index)]),
                found => Err(DeviceError::NotFound { device: self, found }),
            }
        };
        match self {
            Self::Auto => {
                let mut candidates = numbered(Self::Cuda, found_by_cuda().unwrap_or_default());
                if candidates.is_empty() {
                    let of_vulkan = numbered(Self::Vulkan, found_by_vulkan().unwrap_or_default());
                    let of_wgpu = || numbered(Self::Wgpu, found_by_wgpu().unwrap_or_default());
                    candidates = if of_vulkan.is_empty() { of_wgpu() } else { of_vulkan };
                    candidates.retain(|(_, device)| !is_software(device));
                }
                candidates.extend(found_cpu().map(|device| (Self::Cpu, device)));
                let missing = DeviceError::NotBuilt { device: Self::Cpu, feature: "flex" };
                if candidates.is_empty() { Err(missing) } else { Ok(candidates) }
            }
            Self::Cpu => {
                let device = found_cpu().ok_or(DeviceError::NotBuilt { device: self, feature: "flex" })?;
                Ok(vec![(self, device)])
            }
            Self::Cuda(index) => one(Self::Cuda, index, found_by_cuda(), "cuda"),
            Self::Vulkan(index) => one(Self::Vulkan, index, found_by_vulkan(), "vulkan"),
            Self::Wgpu(index) => one(Self::Wgpu, index, found_by_wgpu(), "wgpu"),
        }
    }
}

/// The CPU, or `None` if it is not compiled in.
fn found_cpu() -> Option<Device> {
    #[cfg(feature = "flex")]
    let device = Some(Device::flex());
    #[cfg(not(feature = "flex"))]
    let device = None;
    device
}

/// The devices of CUDA, or `None` if it is not compiled in.
fn found_by_cuda() -> Option<Vec<Device>> {
    #[cfg(feature = "cuda")]
    let found = Some(Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec());
    #[cfg(not(feature = "cuda"))]
    let found = None;
    found
}

/// The devices of Vulkan, discrete ones first, or `None` if it is not compiled in.
fn found_by_vulkan() -> Option<Vec<Device>> {
    #[cfg(feature = "vulkan")]
    let found = Some(best_first(Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec()));
    #[cfg(not(feature = "vulkan"))]
    let found = None;
    found
}

/// The devices of the interface that wgpu takes, discrete ones first, or `None` if it is not compiled in.
fn found_by_wgpu() -> Option<Vec<Device>> {
    #[cfg(any(feature = "wgpu", feature = "vulkan"))]
    let found = Some(best_first(Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec()));
    #[cfg(not(any(feature = "wgpu", feature = "vulkan")))]
    let found = None;
    found
}

#[cfg(any(feature = "wgpu", feature = "vulkan"))]
fn best_first(mut devices: Vec<Device>) -> Vec<Device> {
    devices.sort_by_key(DeviceKind::of);
    devices
}

fn is_software(device: &Device) -> bool {
    DeviceKind::of(device) == DeviceKind::Software
}

/// What a device is, the fastest kind first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// A card with memory of its own.
    Discrete,
    /// A GPU that shares the main memory.
    Integrated,
    /// A GPU that a hypervisor shares out.
    Virtual,
    /// What no interface says more about.
    Other,
    /// The CPU, with kernels of its own.
    Cpu,
    /// A GPU that the CPU plays.
    Software,
}

impl DeviceKind {
    /// The kind of an opened device.
    pub fn of(device: &Device) -> Self {
        #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
        if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
            return Self::of_cube(device);
        }
        let _ = device; // no other kind is compiled in
        Self::Cpu
    }

    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
    fn of_cube(device: &burn::backend::CubeDevice) -> Self {
        #[cfg(any(feature = "wgpu", feature = "vulkan"))]
        if let burn::backend::CubeDevice::Wgpu(device) = device {
            use burn::backend::WgpuDeviceKind;
            return match device.kind {
                WgpuDeviceKind::DiscreteGpu(_) => Self::Discrete,
                WgpuDeviceKind::IntegratedGpu(_) => Self::Integrated,
                WgpuDeviceKind::VirtualGpu(_) => Self::Virtual,
                WgpuDeviceKind::Cpu => Self::Software,
                _ => Self::Other,
            };
        }
        let _ = device; // CUDA has cards alone
        Self::Discrete
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Other => "other",
            Self::Cpu => "cpu",
            Self::Software => "software",
        })
    }
}

/// A device of this machine: what `idefics devices` says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The choice that opens it.
    pub device: DeviceChoice,
    /// The part's own name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// What its kernels are compiled to: `cuda`, `spirv`, `wgsl`, or on the CPU the instruction set: `amx`.
    pub kernels: String,
    /// All the memory that it has or lends, in bytes, used or not; `None` where its interface does not say.
    pub memory_bytes: Option<u64>,
    /// Bytes of the largest single tensor; `None` where there is no such limit.
    pub largest_tensor_bytes: Option<u64>,
    /// What `--dtype` may be.
    pub dtypes: Vec<Precision>,
}

impl DeviceInfo {
    /// Every device of the backends compiled in, in the order of [`DeviceChoice::Auto`], software ones last of their
    /// kind. Opens them all.
    pub fn all() -> Vec<Self> {
        /// What a device of a backend is called, and how its devices are found.
        type GpuBackend = (fn(usize) -> DeviceChoice, fn() -> Option<Vec<Device>>);
        let backends: [GpuBackend; 3] = [
            (DeviceChoice::Cuda, found_by_cuda),
            (DeviceChoice::Vulkan, found_by_vulkan),
            (DeviceChoice::Wgpu, found_by_wgpu),
        ];
        let of_backend = |(choice, found): GpuBackend| {
            let found = found().unwrap_or_default().into_iter().enumerate();
            found.map(move |(index, device)| Self::of(choice(index), &device))
        };
        let cpu = found_cpu().map(|device| Self::of(DeviceChoice::Cpu, &device));
        backends.into_iter().flat_map(of_backend).chain(cpu).collect()
    }

    /// What there is to say of an opened device.
    pub fn of(choice: DeviceChoice, device: &Device) -> Self {
        let (name, kernels, memory_bytes, largest_tensor_bytes) = properties(device);
        Self {
            device: choice,
            name,
            kind: DeviceKind::of(device),
            kernels,
            memory_bytes,
            largest_tensor_bytes,
            dtypes: Precision::able(device),
        }
    }
}

/// All the memory that a device has or lends, in bytes, used or not; `None` where its interface does not say, and of
/// the CPU, whose memory is the system's to tell.
pub fn device_memory_bytes(device: &Device) -> Option<u64> {
    properties(device).2
}

/// Name, language of the kernels, memory and largest tensor.
fn properties(device: &Device) -> (String, String, Option<u64>, Option<u64>) {
    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
    if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
        let client = device.client();
        let properties = client.properties();
        // `wgpu<spirv>`, `cuda`
        let runtime = client.name();
        let language = runtime.split_once('<').and_then(|(_, rest)| rest.strip_suffix('>')).unwrap_or(runtime);
        let memory = &properties.memory;
        let largest = Some(memory.max_page_size).filter(|bytes| *bytes < u64::MAX);
        return (properties.identity.name.clone(), language.to_owned(), memory.max_memory(), largest);
    }
    let _ = device; // no other kind is compiled in
    ("CPU".to_owned(), idefics_kernels::Isa::best().name().to_owned(), None, None)
}

/// How fast a GPU is in two respects that bound a decode step, measured here and now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeviceRates {
    /// Reading its memory, in GB/s.
    pub read_gb_s: f64,
    /// Starting a kernel, in microseconds.
    pub launch_us: f64,
}

/// Measures a GPU; `None` for the CPU, and where a device has no clock.
pub fn measure_device(device: &Device) -> Option<DeviceRates> {
    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
    {
        use burn::backend::cubecl::{MemoryAccess, ThroughputKey, ThroughputMode};

        let keys =
            [ThroughputMode::memory(MemoryAccess::Read), ThroughputMode::Launch].map(|mode| ThroughputKey { mode });
        let measured = device.performance_stats(&keys);
        let [read, launch] = measured.as_slice() else { return None };
        let read_gb_s = read.value.ok()?.bytes_per_s(&read.key) / 1e9;
        let launch_us = launch.value.ok()?.duration_per_op().as_secs_f64() * 1e6;
        Some(DeviceRates { read_gb_s, launch_us }).filter(|rates| rates.read_gb_s.is_finite())
    }
    #[cfg(not(any(feature = "cuda", feature = "wgpu", feature = "vulkan")))]
    {
        let _ = device;
        None
    }
}

/// `--dtype`: the precision of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// On the CPU what the files have, with activations in f32; on a GPU bf16 where it computes in it, else f32. Never
    /// f16, whose range some towers leave.
    #[default]
    Auto,
    /// 32-bit floats: what the reference cases are checked in.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(DeviceError::UnknownPrecision { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl Precision {
    /// The dtype of the weights on the device; `None` leaves it to the files. See
    /// [`LoadOptions::dtype`](idefics_nn::LoadOptions::dtype).
    ///
    /// # Errors
    /// [`DeviceError::Precision`] if it does not compute in the one asked for.
    pub fn on(self, choice: DeviceChoice, device: &Device) -> Result<Option<DType>, DeviceError> {
        let dtype = match self {
            Self::Auto if choice == DeviceChoice::Cpu => return Ok(None),
            Self::Auto if !device.supports_dtype(DType::BF16) => DType::F32,
            Self::Auto | Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        };
        if device.supports_dtype(dtype) {
            Ok(Some(dtype))
        } else {
            Err(DeviceError::Precision { device: choice, precision: self, able: Self::able(device) })
        }
    }

    /// What the device computes in.
    pub fn able(device: &Device) -> Vec<Self> {
        let all = [(Self::F32, DType::F32), (Self::Bf16, DType::BF16), (Self::F16, DType::F16)];
        all.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype)).map(|(precision, _)| precision).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_name() {
        for name in ["auto", "cpu", "cuda:0", "vulkan:1", "wgpu:12"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        for (short, choice) in [("cuda", DeviceChoice::Cuda(0)), ("vulkan", DeviceChoice::Vulkan(0))] {
            assert_eq!(short.parse(), Ok(choice));
        }
        for wrong in ["", "gpu", "cpu:0", "auto:1", "vulkan:", "wgpu:x", "cuda:-1"] {
            assert_eq!(wrong.parse::<DeviceChoice>(), Err(DeviceError::Unknown { name: wrong.to_owned() }));
        }
    }

    #[test]
    fn auto_ends_with_the_cpu_and_takes_no_software_gpu() {
        let candidates = DeviceChoice::Auto.candidates().unwrap();
        assert_eq!(candidates.last().unwrap().0, DeviceChoice::Cpu);
        assert!(!candidates.iter().any(|(_, device)| is_software(device)));
    }

    #[test]
    fn what_a_device_cannot_do_is_refused_with_what_it_can() {
        let error = DeviceError::Precision {
            device: DeviceChoice::Vulkan(0),
            precision: Precision::Bf16,
            able: vec![Precision::F32],
        };
        assert_eq!(error.to_string(), "device vulkan:0: does not compute in bf16, only in f32");
        for info in DeviceInfo::all() {
            let (choice, device) = info.device.open().unwrap();
            for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
                assert_eq!(precision.on(choice, &device).is_ok(), info.dtypes.contains(&precision), "{info:?}");
            }
        }
    }
}
