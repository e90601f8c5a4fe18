//! Devices by name: the one place that knows which backends were compiled in.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};

/// `--device`: what to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device, else the first discrete GPU, else the CPU, of the backends compiled in.
    #[default]
    Auto,
    /// All cores of the CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
    /// A GPU through Vulkan, Metal or WebGPU: the discrete one of that number, or the system's choice.
    Wgpu(Option<usize>),
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device's name.
    #[error("device {name:?}: expected auto, cpu, cuda, cuda:N, wgpu or wgpu:N")]
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
    #[error("device {device}: does not compute in {precision}; use --dtype f32")]
    Precision {
        /// The device.
        device: DeviceChoice,
        /// What was asked for.
        precision: Precision,
    },
    /// Not a precision's name.
    #[error("dtype {name:?}: expected auto, f32, bf16 or f16")]
    UnknownPrecision {
        /// What was asked for.
        name: String,
    },
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let (kind, index) = match name.split_once(':') {
            None => (name, None),
            Some((kind, index)) => {
                let index = index.parse().map_err(|_| DeviceError::Unknown { name: name.to_owned() })?;
                (kind, Some(index))
            }
        };
        match (kind, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index.unwrap_or(0))),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            _ => Err(DeviceError::Unknown { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
            Self::Wgpu(None) => formatter.write_str("wgpu"),
            Self::Wgpu(Some(index)) => write!(formatter, "wgpu:{index}"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`] or [`DeviceError::NotFound`].
    pub fn open(self) -> Result<(Self, Device), DeviceError> {
        match self {
            Self::Auto => Self::Cuda(0).open().or_else(|_| Self::Wgpu(Some(0)).open()).or_else(|_| Self::Cpu.open()),
            Self::Cpu => open_cpu().map(|device| (self, device)),
            Self::Cuda(index) => open_cuda(self, index).map(|device| (self, device)),
            Self::Wgpu(index) => open_wgpu(self, index).map(|device| (self, device)),
        }
    }
}

#[cfg(feature = "flex")]
fn open_cpu() -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn open_cpu() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: DeviceChoice::Cpu, feature: "flex" })
}

#[cfg(feature = "cuda")]
fn open_cuda(choice: DeviceChoice, index: usize) -> Result<Device, DeviceError> {
    let found = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len();
    if index < found { Ok(Device::cuda(index)) } else { Err(DeviceError::NotFound { device: choice, found }) }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(device: DeviceChoice, _index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, feature: "cuda" })
}

#[cfg(any(feature = "wgpu", feature = "vulkan"))]
fn open_wgpu(choice: DeviceChoice, index: Option<usize>) -> Result<Device, DeviceError> {
    use burn::tensor::{DeviceKind, DeviceType};

    // With both compiled in, Vulkan: SPIR-V is the faster path.
    #[cfg(feature = "vulkan")]
    let (devices, open): (_, fn(DeviceKind) -> Device) = (Device::enumerate(DeviceType::Vulkan), Device::vulkan);
    #[cfg(not(feature = "vulkan"))]
    let (devices, open): (_, fn(DeviceKind) -> Device) = (Device::enumerate(DeviceType::Wgpu), Device::wgpu);

    let devices = devices.into_vec();
    let found = match index {
        None => devices.len(),
        Some(_) => devices.iter().filter(|device| format!("{device:?}").contains("DiscreteGpu")).count(),
    };
    match index {
        None if found > 0 => Ok(open(DeviceKind::DefaultDevice)),
        Some(index) if index < found => Ok(open(DeviceKind::DiscreteGpu(index))),
        _ => Err(DeviceError::NotFound { device: choice, found }),
    }
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan")))]
fn open_wgpu(device: DeviceChoice, _index: Option<usize>) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, feature: "wgpu" })
}

/// `--dtype`: the precision of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
            Err(DeviceError::Precision { device: choice, precision: self })
        }
    }
}
