//! The devices and their names. Only this module depends on which backends are compiled in.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};
use serde::{Serialize, Serializer};

/// The device to compute on, as given with `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best available device; see [`DeviceChoice::candidates`].
    #[default]
    Auto,
    /// The CPU, with all cores.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
    /// The Vulkan device with this index, with SPIR-V kernels.
    Vulkan(usize),
    /// The device with this index on the graphics API that wgpu selects. Its kernels are in WGSL, or in SPIR-V if that
    /// API is Vulkan and the `vulkan` feature is enabled.
    Wgpu(usize),
}

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// An unknown device name.
    #[error(
        "device {name:?}: unknown name; expected auto, cpu, cuda, vulkan or wgpu; the last three may have an index, \
         such as cuda:1"
    )]
    Unknown {
        /// The requested name.
        name: String,
    },
    /// The backend is not compiled in.
    #[error("device {device}: this program was built without support for it; build with --features {feature}")]
    NotBuilt {
        /// The requested device.
        device: DeviceChoice,
        /// The Cargo feature to enable.
        feature: &'static str,
    },
    /// There is no such device.
    #[error("device {device}: not found; this machine has {found} of that kind")]
    NotFound {
        /// The requested device.
        device: DeviceChoice,
        /// The number of devices of this kind.
        found: usize,
    },
    /// The device does not support the precision.
    #[error("device {device}: does not support {precision}; expected {}", list(supported))]
    Precision {
        /// The device.
        device: DeviceChoice,
        /// The requested precision.
        precision: Precision,
        /// The supported precisions.
        supported: Vec<Precision>,
    },
    /// An unknown precision name.
    #[error("dtype {name:?}: expected auto, f32, bf16 or f16")]
    UnknownPrecision {
        /// The requested name.
        name: String,
    },
}

/// Joins the names of precisions, for example to `f32 and f16`.
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

/// Serialised by name, as in `--device`.
impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl DeviceChoice {
    /// Opens the device, or for [`DeviceChoice::Auto`] the first candidate.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`] or [`DeviceError::NotFound`].
    pub fn open(self) -> Result<(Self, Device), DeviceError> {
        Ok(self.candidates()?.swap_remove(0))
    }

    /// Returns the devices that the choice can mean, best first. There is at least one. A caller that knows the size of
    /// a model can pick the first device on which it fits.
    ///
    /// [`DeviceChoice::Auto`] means the CUDA devices or, if there are none, the other GPUs: discrete ones first, and
    /// each card once. Software-emulated GPUs are left out, because they are slower than the CPU kernels. The CPU comes
    /// last.
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
                    let vulkan_devices = numbered(Self::Vulkan, found_by_vulkan().unwrap_or_default());
                    let wgpu_devices = || numbered(Self::Wgpu, found_by_wgpu().unwrap_or_default());
                    candidates = if vulkan_devices.is_empty() { wgpu_devices() } else { vulkan_devices };
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

/// Returns the CPU, or `None` if its backend is not compiled in.
fn found_cpu() -> Option<Device> {
    #[cfg(feature = "flex")]
    let device = Some(Device::flex());
    #[cfg(not(feature = "flex"))]
    let device = None;
    device
}

/// Returns the CUDA devices, or `None` if the backend is not compiled in.
fn found_by_cuda() -> Option<Vec<Device>> {
    #[cfg(feature = "cuda")]
    let found = Some(Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec());
    #[cfg(not(feature = "cuda"))]
    let found = None;
    found
}

/// Returns the Vulkan devices, discrete ones first, or `None` if the backend is not compiled in.
fn found_by_vulkan() -> Option<Vec<Device>> {
    #[cfg(feature = "vulkan")]
    let found = Some(best_first(Device::enumerate(burn::tensor::DeviceType::Vulkan).into_vec()));
    #[cfg(not(feature = "vulkan"))]
    let found = None;
    found
}

/// Returns the devices of the API that wgpu selects, discrete ones first, or `None` if the backend is not compiled in.
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

/// The kind of a device. The variants are ordered from fast to slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares main memory.
    Integrated,
    /// A GPU provided by a hypervisor.
    Virtual,
    /// A GPU of unknown kind.
    Other,
    /// The CPU.
    Cpu,
    /// A software-emulated GPU.
    Software,
}

impl DeviceKind {
    /// Returns the kind of an opened device.
    pub fn of(device: &Device) -> Self {
        #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
        if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
            return Self::of_cube(device);
        }
        let _ = device; // is unused if only the CPU is compiled in
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
        let _ = device; // a CUDA device, which is discrete
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

/// A device of this machine, as shown by `idefics devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The choice that opens this device.
    pub device: DeviceChoice,
    /// Product name.
    pub name: String,
    /// Kind of the device.
    pub kind: DeviceKind,
    /// Language of the kernels (`cuda`, `spirv`, `wgsl`). On the CPU, the instruction set, for example `amx`.
    pub kernels: String,
    /// Total memory in bytes, used or not, including shared memory; `None` if the API does not report it.
    pub memory_bytes: Option<u64>,
    /// Maximum size of a tensor in bytes; `None` if there is no limit.
    pub largest_tensor_bytes: Option<u64>,
    /// Supported values of `--dtype`.
    pub dtypes: Vec<Precision>,
}

impl DeviceInfo {
    /// Opens and describes every device of the compiled backends: those of CUDA, Vulkan and wgpu, and then the CPU.
    /// Software-emulated devices are the last of their backend.
    pub fn all() -> Vec<Self> {
        /// A GPU backend: a function that names the device with a given index, and a function that finds the devices.
        type GpuBackend = (fn(usize) -> DeviceChoice, fn() -> Option<Vec<Device>>);
        let backends: [GpuBackend; 3] = [
            (DeviceChoice::Cuda, found_by_cuda),
            (DeviceChoice::Vulkan, found_by_vulkan),
            (DeviceChoice::Wgpu, found_by_wgpu),
        ];
        let infos = |(choice, found): GpuBackend| {
            let found = found().unwrap_or_default().into_iter().enumerate();
            found.map(move |(index, device)| Self::of(choice(index), &device))
        };
        let cpu = found_cpu().map(|device| Self::of(DeviceChoice::Cpu, &device));
        backends.into_iter().flat_map(infos).chain(cpu).collect()
    }

    /// Describes an opened device.
    pub fn of(choice: DeviceChoice, device: &Device) -> Self {
        let (name, kernels, memory_bytes, largest_tensor_bytes) = properties(device);
        Self {
            device: choice,
            name,
            kind: DeviceKind::of(device),
            kernels,
            memory_bytes,
            largest_tensor_bytes,
            dtypes: Precision::supported(device),
        }
    }
}

/// Returns the total memory of a device in bytes, used or not. Returns `None` if the API does not report it, and for
/// the CPU, because its memory is reported by the operating system.
pub fn device_memory_bytes(device: &Device) -> Option<u64> {
    properties(device).2
}

/// Returns the name, the kernel language, the memory in bytes and the maximum tensor size in bytes of a device.
fn properties(device: &Device) -> (String, String, Option<u64>, Option<u64>) {
    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
    if let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() {
        let client = device.client();
        let properties = client.properties();
        // The name is for example `wgpu<spirv>` or `cuda`.
        let runtime = client.name();
        let language = runtime.split_once('<').and_then(|(_, rest)| rest.strip_suffix('>')).unwrap_or(runtime);
        let memory = &properties.memory;
        let largest = Some(memory.max_page_size).filter(|bytes| *bytes < u64::MAX);
        return (properties.identity.name.clone(), language.to_owned(), memory.max_memory(), largest);
    }
    let _ = device; // is unused if only the CPU is compiled in
    ("CPU".to_owned(), idefics_kernels::Isa::best().name().to_owned(), None, None)
}

/// The measured speeds of a GPU that limit decode steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeviceRates {
    /// Memory read bandwidth in GB/s.
    pub read_gb_s: f64,
    /// Time to launch a kernel, in microseconds.
    pub launch_us: f64,
}

/// Measures the speeds of a GPU. Returns `None` for the CPU, and for devices without timers.
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

/// The precision of weights and activations, as given with `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// On the CPU, weights have the dtype of the files and activations are f32. On a GPU, both are bf16 if it is
    /// supported, otherwise f32. They are never f16, because the activations of some vision towers exceed its range.
    #[default]
    Auto,
    /// 32-bit floats. The reference cases are checked with this precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
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
    /// Returns the dtype of the weights on the device, or `None` if they keep the dtype of the files. See
    /// [`LoadOptions::dtype`](idefics_nn::LoadOptions::dtype).
    ///
    /// # Errors
    /// [`DeviceError::Precision`] if the device does not support the precision.
    pub fn dtype_on(self, choice: DeviceChoice, device: &Device) -> Result<Option<DType>, DeviceError> {
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
            Err(DeviceError::Precision { device: choice, precision: self, supported: Self::supported(device) })
        }
    }

    /// Returns the precisions that the device supports.
    pub fn supported(device: &Device) -> Vec<Self> {
        let all = [(Self::F32, DType::F32), (Self::Bf16, DType::BF16), (Self::F16, DType::F16)];
        all.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype)).map(|(precision, _)| precision).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
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
    fn auto_ends_with_cpu_and_skips_software_gpus() {
        let candidates = DeviceChoice::Auto.candidates().unwrap();
        assert_eq!(candidates.last().unwrap().0, DeviceChoice::Cpu);
        assert!(!candidates.iter().any(|(_, device)| is_software(device)));
    }

    #[test]
    fn unsupported_precision_error_lists_supported_precisions() {
        let error = DeviceError::Precision {
            device: DeviceChoice::Vulkan(0),
            precision: Precision::Bf16,
            supported: vec![Precision::F32],
        };
        assert_eq!(error.to_string(), "device vulkan:0: does not support bf16; expected f32");
        for info in DeviceInfo::all() {
            let (choice, device) = info.device.open().unwrap();
            for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
                assert_eq!(precision.dtype_on(choice, &device).is_ok(), info.dtypes.contains(&precision), "{info:?}");
            }
        }
    }
}
