//! Tests of quantised linear layers: with and without kernels, in memory and on disk, and from faulty files.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use idefics_checkpoint::{Checkpoint, CheckpointError};
use idefics_kernels::formats::{FourBitType, NestedAbsmax};
use idefics_nn::checkpoint::{LoadProgress, write_quantized};
use idefics_nn::{Embedding, Linear, LoadModule, LoadOptions, PackedFormat, Quantization, RmsNorm};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::common::{assert_close, values};

/// Every format, with and without double quantisation.
const FORMATS: [(PackedFormat, bool); 7] = [
    (PackedFormat::Int8, false),
    (PackedFormat::FourBit(FourBitType::Nf4), false),
    (PackedFormat::FourBit(FourBitType::Nf4), true),
    (PackedFormat::FourBit(FourBitType::Fp4), false),
    (PackedFormat::FourBit(FourBitType::Fp4), true),
    (PackedFormat::Q4, false),
    (PackedFormat::Int4 { group: NonZeroUsize::new(32).unwrap() }, false),
];

/// A module with a layer of every kind.
#[derive(Module, Debug)]
struct Small {
    embed: Embedding,
    up: Linear,
    norm: RmsNorm,
    head: Linear,
}

fn small(d_in: usize, d_out: usize, device: &Device) -> Small {
    Small {
        embed: Embedding::new(3, d_in, device),
        up: Linear::new(d_in, d_out, device),
        norm: RmsNorm::new(d_out, 1e-6, device),
        head: Linear::new_without_bias(d_out, 2, device),
    }
}

fn quantization(format: PackedFormat, double_quant: bool) -> Quantization {
    Quantization { format, double_quant, modules_to_not_convert: vec!["head".to_owned()] }
}

fn options(format: PackedFormat, double_quant: bool) -> LoadOptions<'static> {
    LoadOptions { quantize: Some(quantization(format, double_quant)), ..LoadOptions::default() }
}

/// A progress callback that never stops the work.
fn ignore_progress(_: LoadProgress) -> Result<(), CheckpointError> {
    Ok(())
}

fn load(folder: &Path, (d_in, d_out): (usize, usize), quantize: Option<Quantization>, device: &Device) -> Small {
    try_load(folder, (d_in, d_out), quantize, device).unwrap()
}

fn try_load(
    folder: &Path,
    (d_in, d_out): (usize, usize),
    quantize: Option<Quantization>,
    device: &Device,
) -> Result<Small, CheckpointError> {
    let options = LoadOptions { quantize, ..LoadOptions::default() };
    Checkpoint::open(folder)?.load(small(d_in, d_out, device), &options, |_| ())
}

/// Creates a checkpoint of [`Small`] with weights drawn from `seed`.
fn plain_folder(d_in: usize, d_out: usize, seed: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    device.seed(seed);
    let path = folder.path().join("model.safetensors");
    idefics_nn::checkpoint::save(&small(d_in, d_out, &device), &path, DType::F32, &[]).unwrap();
    folder
}

fn rows(n_rows: usize, d_in: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..n_rows * d_in).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Tensor::from_data(TensorData::new(values, [n_rows, d_in]), device)
}

/// Writes a quantised copy of the checkpoint `plain` to a new folder.
fn quantized_folder(plain: &Path, dims: (usize, usize), format: PackedFormat, double_quant: bool) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let module = small(dims.0, dims.1, &Device::flex());
    let checkpoint = Checkpoint::open(plain).unwrap();
    write_quantized(&checkpoint, &module, &options(format, double_quant), folder.path(), ignore_progress).unwrap();
    folder
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn kernels_match_plain_operations(d_in in 1_usize..150, d_out in 1_usize..40, n_rows in 1_usize..5, seed: u64) {
        let folder = plain_folder(d_in, d_out, seed);
        let (kernels, graph) = (Device::flex(), Device::flex().autodiff());
        // On the CPU, all parameters except matrices are f32.
        for device in [&kernels, &graph] {
            let options = LoadOptions { dtype: Some(DType::BF16), ..LoadOptions::default() };
            let module = Checkpoint::open(folder.path()).unwrap();
            let module = module.load(small(d_in, d_out, device), &options, |_| ()).unwrap();
            assert_eq!(module.norm.weight.val().dtype(), DType::F32);
        }
        for (format, double_quant) in FORMATS {
            let quantize = Some(quantization(format, double_quant));
            let fast = load(folder.path(), (d_in, d_out), quantize.clone(), &kernels);
            let plain = load(folder.path(), (d_in, d_out), quantize, &graph);
            assert_close(
                format.name(),
                &fast.up.forward(rows(n_rows, d_in, &kernels)),
                &plain.up.forward(rows(n_rows, d_in, &graph)).inner(),
                1e-5,
            );
        }
    }

    #[test]
    fn quantised_checkpoint_matches_quantising_on_load(d_in in 1_usize..150, d_out in 1_usize..40, seed: u64) {
        let folder = plain_folder(d_in, d_out, seed);
        let device = Device::flex();
        for (format, double_quant) in FORMATS {
            let on_load = load(folder.path(), (d_in, d_out), Some(quantization(format, double_quant)), &device);
            let written = quantized_folder(folder.path(), (d_in, d_out), format, double_quant);
            let on_disk = load(written.path(), (d_in, d_out), None, &device);
            let output = |module: &Small| {
                let hidden = module.norm.forward(module.up.forward(rows(2, d_in, &device)));
                (values(module.head.forward(hidden)), values(module.embed.table()))
            };
            prop_assert_eq!(output(&on_load), output(&on_disk), "{:?}", format);
        }
    }
}

#[test]
fn zero_block_survives_double_quantisation() {
    // After double quantisation, the scale of the zero block is slightly below zero.
    let blocks = [0.0, 1.0, 1.0, 5.0];
    assert!(NestedAbsmax::quantize(&blocks).unwrap().dequantize().unwrap()[0] < 0.0);
    let plain = edited(plain_folder(64, 4, 5).path(), |parts| {
        parts.get_mut("up.weight").unwrap().2 = floats(&blocks.map(|block| [block; 64]).concat());
    });
    let nf4 = PackedFormat::FourBit(FourBitType::Nf4);
    let device = Device::flex();
    let on_load = load(plain.path(), (64, 4), Some(quantization(nf4, true)), &device);
    let on_disk = load(quantized_folder(plain.path(), (64, 4), nf4, true).path(), (64, 4), None, &device);
    let output = |module: &Small| values(module.up.forward(rows(2, 64, &device)));
    assert_eq!(output(&on_load), output(&on_disk));
}

#[test]
fn rejects_requantising_to_another_format() {
    let plain = plain_folder(64, 4, 1);
    let nf4 = PackedFormat::FourBit(FourBitType::Nf4);
    let folder = quantized_folder(plain.path(), (64, 4), nf4, false);
    let device = Device::flex();
    load(folder.path(), (64, 4), Some(quantization(nf4, false)), &device);
    let error = try_load(folder.path(), (64, 4), Some(quantization(PackedFormat::Q4, false)), &device).unwrap_err();
    assert!(matches!(error, CheckpointError::AlreadyQuantized { found: "nf4", asked: "q4", .. }), "{error}");
    let again = Checkpoint::open(folder.path()).unwrap();
    let target = tempfile::tempdir().unwrap();
    let error = write_quantized(&again, &small(64, 4, &device), &options(nf4, false), target.path(), ignore_progress);
    assert!(matches!(error, Err(CheckpointError::AlreadyQuantized { .. })));
}

#[test]
fn as_stored_weights_stay_memory_mapped() {
    let (d_in, d_out) = (64, 48);
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    idefics_nn::checkpoint::save(&small(d_in, d_out, &device), &path, DType::BF16, &[]).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let as_stored = ["up.".to_owned()];
    let nf4 = quantization(PackedFormat::FourBit(FourBitType::Nf4), false);
    let output = |options: &LoadOptions<'_>| {
        let module = checkpoint.load(small(d_in, d_out, &device), options, |_| ()).unwrap();
        let memory = options.memory(&module, Some(&checkpoint), &device);
        (values(module.up.forward(rows(2, d_in, &device))), memory.mapped)
    };
    let (exact, mapped) = output(&LoadOptions::default());
    assert_eq!(mapped, 0, "everything is converted to f32");
    for quantize in [None, Some(nf4.clone())] {
        let (left, mapped) = output(&LoadOptions { quantize, as_stored: &as_stored, ..LoadOptions::default() });
        assert_eq!(mapped, 2 * (d_in * d_out) as u64);
        let off = left.iter().zip(&exact).map(|(left, exact)| (left - exact).abs()).fold(0.0, f32::max);
        assert!(off < 1e-6, "bf16 weights from the file must give the same output, difference {off}");
    }
    let (rounded, _) = output(&LoadOptions { quantize: Some(nf4), ..LoadOptions::default() });
    assert_ne!(rounded, exact);
}

/// The tensors of a checkpoint, to be edited: dtype, shape and bytes of each.
type Parts = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn edited(folder: &Path, edit: impl FnOnce(&mut Parts)) -> TempDir {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts: Parts = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    edit(&mut parts);
    let views = parts.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("shape and bytes must match after the edit"))
    });
    let edited = tempfile::tempdir().unwrap();
    std::fs::write(edited.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    edited
}

/// Replaces the bytes of a tensor. Its shape becomes one-dimensional.
fn replace(parts: &mut Parts, name: &str, bytes: Vec<u8>) {
    let (dtype, shape, data) = parts.get_mut(name).unwrap();
    *shape = vec![bytes.len() * 8 / dtype.bitsize()];
    *data = bytes;
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn errors_of_quantised_files_name_the_tensor() {
    const ABSMAX: &str = "up.weight.absmax";
    const STATE: &str = "up.weight.quant_state.bitsandbytes__nf4";
    let plain = plain_folder(64, 4, 2);
    let nf4 = PackedFormat::FourBit(FourBitType::Nf4);
    let written = |format, double| quantized_folder(plain.path(), (64, 4), format, double);
    let state = |from: &'static str, to: &'static str| {
        move |parts: &mut Parts| {
            let text = String::from_utf8(parts[STATE].2.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            replace(parts, STATE, text.replace(from, to).into_bytes());
        }
    };
    type Edit<'a> = Box<dyn FnOnce(&mut Parts) + 'a>;
    let edits: Vec<(&str, PackedFormat, bool, Edit<'_>)> = vec![
        ("is inf", nf4, false, Box::new(|parts| replace(parts, ABSMAX, floats(&[1.0, f32::INFINITY, 1.0, 1.0])))),
        ("is NaN", nf4, false, Box::new(|parts| replace(parts, ABSMAX, floats(&[1.0, 1.0, 1.0, f32::NAN])))),
        ("is -1", nf4, false, Box::new(|parts| replace(parts, ABSMAX, floats(&[1.0, 1.0, -1.0, 1.0])))),
        ("absmax", nf4, false, Box::new(|parts| replace(parts, ABSMAX, floats(&[1.0, 1.0, 1.0])))),
        ("four-bit codes", nf4, false, Box::new(|parts| replace(parts, "up.weight", vec![0; 100]))),
        ("quant_map", nf4, false, Box::new(|parts| replace(parts, "up.weight.quant_map", floats(&[0.5; 16])))),
        (
            "quant_state",
            nf4,
            false,
            Box::new(|parts| {
                let half = parts[STATE].2[..20].to_vec();
                replace(parts, STATE, half);
            }),
        ),
        ("blocksize", nf4, false, Box::new(state("64,\"dtype", "128,\"dtype"))),
        ("shape", nf4, false, Box::new(state("[4,64]", "[8,32]"))),
        ("quant_type", nf4, false, Box::new(state("\"nf4\"", "\"nf5\""))),
        ("quant_type", nf4, false, Box::new(state("\"nf4\"", "\"fp4\""))),
        ("nested_blocksize", nf4, true, Box::new(state("256", "255"))),
        ("nested", nf4, true, Box::new(|parts| replace(parts, "up.weight.nested_absmax", floats(&[f32::NAN])))),
        ("nested", nf4, true, Box::new(|parts| replace(parts, "up.weight.nested_absmax", floats(&[1.0, 1.0])))),
        (
            "up.weight.nested_absmax",
            nf4,
            true,
            Box::new(|parts| drop(parts.remove("up.weight.nested_absmax").unwrap())),
        ),
        (
            "int8 scales",
            PackedFormat::Int8,
            false,
            Box::new(|parts| replace(parts, "up.weight.scales", floats(&[1.0, f32::NEG_INFINITY, 1.0, 1.0]))),
        ),
        (
            "int8 scales",
            PackedFormat::Int8,
            false,
            Box::new(|parts| replace(parts, "up.weight.scales", floats(&[1.0, 1.0, 3e38, 1.0]))),
        ),
        (
            "int8 scales",
            PackedFormat::Int8,
            false,
            Box::new(|parts| replace(parts, "up.weight.scales", floats(&[1.0, 1.0, 1.0, 0.0]))),
        ),
        (
            "q4 scales",
            PackedFormat::Q4,
            false,
            Box::new(|parts| {
                let n = parts["up.weight.scales"].2.len();
                replace(parts, "up.weight.scales", [0x00, 0x7f].repeat(n / 2)); // all are 1.7e38
            }),
        ),
        (
            "q4 scales",
            PackedFormat::Q4,
            false,
            Box::new(|parts| {
                let n = parts["up.weight.scales"].2.len();
                replace(parts, "up.weight.scales", [0x80, 0x7f].repeat(n / 2)); // all are infinite
            }),
        ),
        ("q4 codes", PackedFormat::Q4, false, Box::new(|parts| replace(parts, "up.weight", vec![0; 64]))),
    ];
    for (word, format, double, edit) in edits {
        let folder = edited(written(format, double).path(), edit);
        let error = try_load(folder.path(), (64, 4), None, &Device::flex()).expect_err(word);
        let message = error.to_string();
        assert!(matches!(error, CheckpointError::Quantized { .. }), "{message}");
        assert!(message.contains("`up.weight`") && message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn rejects_quantised_tensors_outside_linear_layers() {
    let plain = plain_folder(64, 4, 6);
    let eight_bits = |shape: Vec<usize>| (Dtype::I8, shape.clone(), vec![1; shape.iter().product()]);
    let state = (Dtype::U8, vec![2], b"{}".to_vec());
    let scales = (Dtype::F32, vec![1], floats(&[1.0]));
    let quant_state = ".quant_state.bitsandbytes__nf4";
    for (name, tensor, beside) in [
        ("norm.weight", Some(eight_bits(vec![4])), None),
        ("norm.weight", None, Some((quant_state, state.clone()))),
        ("norm.weight", None, Some((".scales", scales.clone()))),
        ("up.bias", Some(eight_bits(vec![4])), None),
        ("embed.weight", Some(eight_bits(vec![3, 64])), None),
        ("embed.weight", None, Some((quant_state, state))),
        ("embed.weight", None, Some((".scales", scales))),
    ] {
        let broken = edited(plain.path(), |parts| {
            parts.extend(tensor.map(|tensor| (name.to_owned(), tensor)));
            parts.extend(beside.map(|(end, tensor)| (format!("{name}{end}"), tensor)));
        });
        let error = try_load(broken.path(), (64, 4), None, &Device::flex()).expect_err(name);
        let message = error.to_string();
        assert!(matches!(error, CheckpointError::NotLinear { .. }), "{message}");
        assert!(message.contains(&format!("`{name}`")) && message.contains("model.safetensors"), "{message}");
        plan(broken.path());
    }
    let flat = edited(plain.path(), |parts| drop(parts.insert("up.weight".to_owned(), eight_bits(vec![256]))));
    let error = try_load(flat.path(), (64, 4), None, &Device::flex()).unwrap_err();
    assert!(matches!(error, CheckpointError::Shape { .. }), "{error}");
    plan(flat.path());
}

/// Checks that the memory can be predicted, whatever the file contains.
fn plan(folder: &Path) {
    let (device, checkpoint) = (Device::flex(), Checkpoint::open(folder).unwrap());
    let module = small(64, 4, &device);
    for options in [LoadOptions::default(), options(PackedFormat::Q4, false)] {
        assert!(options.memory(&module, Some(&checkpoint), &device).total() > 0);
    }
}

#[test]
fn progress_ends_at_total() {
    let plain = plain_folder(64, 4, 7);
    for (format, double_quant) in FORMATS {
        let folder = quantized_folder(plain.path(), (64, 4), format, double_quant);
        for (folder, quantize) in [(plain.path(), Some(quantization(format, double_quant))), (folder.path(), None)] {
            let mut last = None;
            let options = LoadOptions { quantize, ..LoadOptions::default() };
            let module = small(64, 4, &Device::flex());
            Checkpoint::open(folder).unwrap().load(module, &options, |progress| last = Some(progress)).unwrap();
            let last = last.unwrap();
            assert_eq!(last.bytes_done, last.bytes_total);
        }
    }
}

#[test]
fn rejects_quantising_non_finite_weights() {
    let plain = plain_folder(64, 4, 3);
    let broken = edited(plain.path(), |parts| parts.get_mut("up.weight").unwrap().2[..4].copy_from_slice(&[0xff; 4]));
    for (format, double_quant) in FORMATS {
        let error = try_load(broken.path(), (64, 4), Some(quantization(format, double_quant)), &Device::flex());
        assert!(error.unwrap_err().to_string().contains("up.weight"));
    }
}

#[test]
fn loads_llm_int8_files() {
    let plain = plain_folder(3, 2, 4);
    let folder = edited(plain.path(), |parts| {
        parts.insert("up.weight".into(), (Dtype::I8, vec![2, 3], vec![127, 0, 129, 1, 2, 3])); // 129 means −127
        parts.insert("up.SCB".into(), (Dtype::F32, vec![2], floats(&[2.0, 127.0])));
        parts.insert("up.weight_format".into(), (Dtype::U8, vec![1], vec![0]));
        parts.insert("up.bias".into(), (Dtype::F32, vec![2], floats(&[0.0, 0.5])));
    });
    let module = load(folder.path(), (3, 2), None, &Device::flex());
    let output = module.up.forward(Tensor::<2>::from_floats([[1.0, 10.0, 100.0]], &Device::flex()));
    assert_close("output", &output, &Tensor::from_floats([[-198.0, 321.5]], &Device::flex()), 1e-4);
    for format in [1, 2, 3] {
        let tiled = edited(folder.path(), |parts| replace(parts, "up.weight_format", vec![format]));
        let message = try_load(tiled.path(), (3, 2), None, &Device::flex()).unwrap_err().to_string();
        assert!(message.contains(&format!("`up.weight_format` is {format}; expected 0")), "{message}");
    }
}
