//! Helpers for the tests of the component crates: cases computed with Transformers, seeded random numbers, and
//! comparisons.

#![allow(dead_code)] // each crate uses only some of the helpers

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use idefics_checkpoint::{Checkpoint, PicklePolicy};
use idefics_nn::{FourBitType, LoadModule, LoadOptions, PackedFormat, Quantization, from_section};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Returns the path of a folder in `xtask`, for example `checkpoints` or `cases`.
pub(crate) fn xtask_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask").join(name)
}

/// A model folder in the layout of Hugging Face.
pub(crate) struct Model {
    folder: PathBuf,
    pub(crate) config: Value,
    quantize: Option<Quantization>,
}

impl Model {
    /// Opens `xtask/checkpoints/{name}`.
    pub(crate) fn named(name: &str) -> Self {
        Self::open(xtask_folder("checkpoints").join(name), None)
    }

    fn open(folder: PathBuf, quantize: Option<Quantization>) -> Self {
        let config = read_json(&folder.join("config.json"));
        Self { folder, config, quantize }
    }

    /// Parses a section of the configuration, for example `text_config`.
    pub(crate) fn section<C: DeserializeOwned>(&self, name: &str) -> C {
        serde_json::from_value(self.config[name].clone()).unwrap()
    }

    /// Parses a section of the configuration. Keys that the section omits get their values from `defaults`.
    pub(crate) fn section_over<C: Serialize + DeserializeOwned>(&self, name: &str, defaults: &C) -> C {
        from_section(self.config[name].clone(), defaults).unwrap()
    }

    /// Loads a component. Every parameter must have a tensor under the prefix.
    pub(crate) fn load<M: Module>(&self, module: M, prefix: &str) -> M {
        let options = LoadOptions { prefix, quantize: self.quantize.clone(), ..LoadOptions::default() };
        let checkpoint = Checkpoint::open_with(&self.folder, PicklePolicy::Allowed).unwrap();
        checkpoint.load(module, &options, |_| ()).unwrap()
    }
}

/// The outputs of Transformers for one input (see `xtask/README.md`).
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) model: Model,
    family: String,
    expected: Vec<u8>,
}

/// A real image of a case. Images that are all zeros are padding, which Transformers drops.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture {
    /// Index among all images of the batch, counted row by row. Padding images count too.
    pub(crate) index: usize,
    /// Height of the real pixels, which start in the top left corner.
    pub(crate) height: usize,
    /// Width of the real pixels.
    pub(crate) width: usize,
}

/// Returns the quantisation that a case asks for, if any.
fn quantization(load: &Value) -> Option<Quantization> {
    let format = match load["quantize"].as_str()? {
        "int8" => PackedFormat::Int8,
        "nf4" => PackedFormat::FourBit(FourBitType::Nf4),
        "fp4" => PackedFormat::FourBit(FourBitType::Fp4),
        other => panic!("no case uses the format {other}"),
    };
    let double_quant = load["double_quant"].as_bool().unwrap_or(false);
    Some(Quantization { format, double_quant, modules_to_not_convert: vec!["lm_head".to_owned()] })
}

impl Case {
    /// Opens every committed Idefics2 case that has the tensor.
    pub(crate) fn all_with(tensor: &str) -> Vec<Self> {
        Self::all_of("idefics2", tensor)
    }

    /// Opens every committed case of a family that has the tensor.
    pub(crate) fn all_of(family: &str, tensor: &str) -> Vec<Self> {
        let mut folders: Vec<PathBuf> =
            std::fs::read_dir(xtask_folder("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        let cases: Vec<Self> = folders.iter().map(|folder| Self::open(folder)).collect();
        let cases: Vec<Self> = cases.into_iter().filter(|case| case.family == family && case.has(tensor)).collect();
        assert!(!cases.is_empty(), "no case has {tensor}");
        cases
    }

    pub(crate) fn named(name: &str) -> Self {
        Self::open(&xtask_folder("cases").join(name))
    }

    fn open(folder: &Path) -> Self {
        let case = read_json(&folder.join("case.json"));
        let [checkpoint, family] = ["checkpoint", "family"].map(|key| case[key].as_str().unwrap().to_owned());
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model: Model::open(folder.join(checkpoint), quantization(&case["load"])),
            family,
            expected: std::fs::read(folder.join("expected.safetensors")).unwrap(),
        }
    }

    pub(crate) fn has(&self, tensor: &str) -> bool {
        SafeTensors::deserialize(&self.expected).unwrap().tensor(tensor).is_ok()
    }

    /// Returns the values and the shape of an expected tensor.
    fn data<T>(&self, name: &str, dtype: Dtype, read: impl Fn(&[u8]) -> T) -> (Vec<T>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), dtype, "{name}");
        (tensor.data().chunks_exact(tensor.dtype().bitsize() / 8).map(read).collect(), tensor.shape().to_vec())
    }

    pub(crate) fn floats<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (values, shape) = self.data(name, Dtype::F32, |bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    pub(crate) fn integers(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        self.data(name, Dtype::I64, |bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
    }

    pub(crate) fn input_ids(&self, device: &Device) -> Tensor<2, Int> {
        let (values, shape) = self.integers("processor.input_ids");
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Returns the number of padding tokens at the start of each row.
    pub(crate) fn left_padding(&self) -> Vec<usize> {
        let (mask, shape) = self.integers("processor.attention_mask");
        mask.chunks(shape[1]).map(|row| row.iter().take_while(|&&real| real == 0).count()).collect()
    }

    /// Returns the pixels of the real images of the batch, row by row, for a case without a pixel mask.
    pub(crate) fn whole_pictures(&self, device: &Device) -> Tensor<4> {
        let slots = self.floats::<5>("processor.pixel_values", device).flatten::<4>(0, 1);
        let is_real = |index: &usize| values(part(&slots, 0, *index, index + 1)).iter().any(|&pixel| pixel != 0.0);
        let real = (0..slots.dims()[0]).filter(is_real).map(|index| part(&slots, 0, index, index + 1)).collect();
        Tensor::cat(real, 0)
    }

    /// Returns the real images of the batch, row by row.
    pub(crate) fn pictures(&self) -> Vec<Picture> {
        let (mask, shape) = self.integers("processor.pixel_attention_mask");
        let [height, width] = [shape[2], shape[3]];
        let pixels = self.floats::<5>("processor.pixel_values", &Device::flex());
        let pixels = values(pixels);
        mask.chunks(height * width)
            .zip(pixels.chunks(3 * height * width))
            .enumerate()
            .filter(|(_, (_, pixels))| pixels.iter().any(|&pixel| pixel != 0.0))
            .map(|(index, (mask, _))| Picture {
                index,
                height: mask.iter().step_by(width).filter(|&&real| real == 1).count(),
                width: mask[..width].iter().filter(|&&real| real == 1).count(),
            })
            .collect()
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Returns a tensor's elements in row-major order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().unwrap()
}

/// Returns the part `start..end` of a tensor along axis `dim`.
pub(crate) fn part<const D: usize>(tensor: &Tensor<D>, dim: usize, start: usize, end: usize) -> Tensor<D> {
    tensor.clone().narrow(dim, start, end - start)
}

/// Panics unless the shapes match and no element differs by more than `tolerance`. NaN never matches.
pub(crate) fn assert_close<const D: usize>(name: &str, actual: &Tensor<D>, expected: &Tensor<D>, tolerance: f32) {
    assert_eq!(actual.dims(), expected.dims(), "{name}");
    assert_values_close(name, &values(actual.clone()), &values(expected.clone()), tolerance);
}

/// Compares values on the host like [`assert_close`].
pub(crate) fn assert_values_close(name: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let close = (actual - expected).abs() <= tolerance; // false for NaN
        assert!(close, "{name}: element {index} is {actual}; expected {expected} within {tolerance}");
    }
}

/// Returns `n` pseudorandom numbers in -1..1, the same on every run and machine (SplitMix64).
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    (0..n).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Returns a tensor of [`numbers`].
pub(crate) fn random<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(numbers(seed, shape.iter().product()), shape), device)
}

/// Creates a mask with the given values and shape.
pub(crate) fn bool_mask<const D: usize>(values: Vec<bool>, shape: [usize; D], device: &Device) -> Tensor<D, Bool> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
