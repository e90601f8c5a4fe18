//! Tests of layers whose weights are stored by AWQ, GPTQ and compressed-tensors: products, gradients, memory and faulty
//! files.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use idefics_checkpoint::{Checkpoint, CheckpointError, Dtype, NamedTensor, ShardWriter};
use idefics_kernels::formats::FourBitType;
use idefics_nn::checkpoint::{save, write_quantized};
use idefics_nn::{Linear, LoadModule, LoadOptions, PackedFormat, Quantization, Weight};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::EXACT;
use crate::common::{assert_close, assert_values_close, random, values};

const D_IN: usize = 64;
const D_OUT: usize = 24;
const GROUP: usize = 32;

/// A layer whose weight is stored in int4, and a dense layer.
#[derive(Module, Debug)]
struct Pair {
    up: Linear,
    plain: Linear,
}

impl Pair {
    fn new(device: &Device) -> Self {
        Self { up: Linear::new_without_bias(D_IN, D_OUT, device), plain: Linear::new_without_bias(2, 2, device) }
    }
}

fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> NamedTensor<'static> {
    NamedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
}

/// Creates a checkpoint folder with a layer in one of the [`LAYOUTS`], with random codes. In `gptq-act-order`, the
/// inputs of a group are not adjacent.
fn folder(layout: &str, edit: impl FnOnce(&mut Vec<NamedTensor<'static>>)) -> TempDir {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut words = |name: &str, shape: [usize; 2]| {
        tensor(name, Dtype::I32, &shape, (0..4 * shape[0] * shape[1]).map(|_| random.random()).collect())
    };
    let groups = D_IN / GROUP;
    let scales = |name: &str, shape: [usize; 2]| {
        // The values are F16 bit patterns, from 0.02 to 0.027.
        let values = (0..shape[0] * shape[1]).flat_map(|at| (0x251e + at as u16 % 400).to_le_bytes());
        tensor(name, Dtype::F16, &shape, values.collect())
    };
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": layout != "gptq"});
    let (mut tensors, config) = match layout {
        "awq" => (
            vec![
                words("up.qweight", [D_IN, D_OUT / 8]),
                words("up.qzeros", [groups, D_OUT / 8]),
                scales("up.scales", [groups, D_OUT]),
            ],
            json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
        ),
        "compressed-tensors" => {
            let weights = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP});
            (
                vec![words("up.weight_packed", [D_OUT, D_IN / 8]), scales("up.weight_scale", [D_OUT, groups])],
                json!({"quant_method": layout, "format": "pack-quantized", "config_groups": {"0": {"weights": weights}}}),
            )
        }
        _ => (
            vec![
                words("up.qweight", [D_IN / 8, D_OUT]),
                words("up.qzeros", [groups, D_OUT / 8]),
                scales("up.scales", [groups, D_OUT]),
                tensor("up.bias", Dtype::F16, &[D_OUT], vec![0; 2 * D_OUT]),
            ],
            gptq,
        ),
    };
    if layout == "gptq-act-order" {
        let bytes = (0..D_IN).flat_map(|input| (input as i32 * 5 % 64 / 32).to_le_bytes()).collect();
        tensors.push(tensor("up.g_idx", Dtype::I32, &[D_IN], bytes));
    }
    tensors.push(tensor("plain.weight", Dtype::F32, &[2, 2], vec![0; 16]));
    edit(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let mut shards = ShardWriter::new(folder.path());
    tensors.into_iter().try_for_each(|tensor| shards.push(tensor)).unwrap();
    shards.finish().unwrap();
    write_config(folder.path(), &config);
    folder
}

fn write_config(folder: &Path, quantization_config: &Value) {
    let config = json!({"quantization_config": quantization_config});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

const LAYOUTS: [&str; 4] = ["awq", "gptq", "gptq-act-order", "compressed-tensors"];

fn load(folder: &Path, device: &Device) -> Pair {
    Checkpoint::open(folder).unwrap().load(Pair::new(device), &LoadOptions::default(), |_| ()).unwrap()
}

/// Dequantises the weight to f32, `[d_out, d_in]`.
fn dequantized(linear: &Linear) -> Tensor<2> {
    match linear.weight() {
        Weight::Packed(weight) => weight.dequantize(),
        Weight::Dense(_) => panic!("the weight must stay packed"),
    }
}

/// Computes the weight by the definition of GPTQ, `[d_out, d_in]`.
fn gptq_values(checkpoint: &Checkpoint) -> Vec<f32> {
    let bytes = |name: &str| checkpoint.tensor(name).unwrap().bytes();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
    let mut values = Vec::new();
    for row in 0..D_OUT {
        for input in 0..D_IN {
            let index = checkpoint.tensor("up.g_idx").map(|entry| word(entry.bytes(), input) as usize);
            let group = index.unwrap_or(input / GROUP);
            let code = word(bytes("up.qweight"), input / 8 * D_OUT + row) >> (4 * (input % 8)) & 15;
            let zero = (word(bytes("up.qzeros"), group * D_OUT / 8 + row / 8) >> (4 * (row % 8)) & 15) + 1;
            let at = 2 * (group * D_OUT + row);
            let scale = half::f16::from_le_bytes(bytes("up.scales")[at..at + 2].try_into().unwrap());
            values.push((code as f32 - zero as f32) * scale.to_f32());
        }
    }
    values
}

#[test]
fn gptq_weights_equal_their_definition() {
    for layout in ["gptq", "gptq-act-order"] {
        let folder = folder(layout, |_| ());
        let expected = gptq_values(&Checkpoint::open(folder.path()).unwrap());
        for device in [Device::flex(), Device::flex().autodiff()] {
            assert_eq!(values(dequantized(&load(folder.path(), &device).up)), expected, "{layout}");
        }
    }
}

#[test]
fn products_and_gradients_match_the_dequantised_weight() {
    for layout in LAYOUTS {
        let folder = folder(layout, |_| ());
        let (kernels, graph) = (load(folder.path(), &Device::flex()), load(folder.path(), &Device::flex().autodiff()));
        let weight = dequantized(&kernels.up);
        for n_rows in [1, 2, 5, 8, 20] {
            let x = random::<2>(n_rows as u64, [n_rows, D_IN], &Device::flex());
            let expected = x.clone().matmul(weight.clone().transpose());
            assert_close(layout, &kernels.up.forward(x.clone()), &expected, EXACT);

            let input = Tensor::from_inner(x).require_grad();
            let output = graph.up.forward(input.clone());
            assert_close(layout, &output.clone().inner(), &expected, EXACT);
            let gradient = input.grad(&output.square().sum().backward()).unwrap();
            assert_close(layout, &gradient, &(expected.matmul(weight.clone()) * 2.0), 10.0 * EXACT);
        }
    }
}

#[test]
fn packed_weights_survive_saving_and_moving() {
    for layout in LAYOUTS {
        let folder = folder(layout, |_| ());
        let pair = load(folder.path(), &Device::flex());
        let expected = values(dequantized(&pair.up));
        let moved = pair.clone().to_device(&Device::flex()).fork(&Device::flex());
        assert_eq!(values(dequantized(&moved.up)), expected, "{layout}");
        let saved = tempfile::tempdir().unwrap();
        save(&pair, &saved.path().join("model.safetensors"), DType::F32, &[]).unwrap();
        let again = load(saved.path(), &Device::flex());
        assert_eq!(values(dequantized(&again.up)), expected, "{layout}");
        let x = random::<2>(1, [3, D_IN], &Device::flex());
        assert_values_close(layout, &values(again.up.forward(x.clone())), &values(pair.up.forward(x)), 0.0);
    }
}

#[test]
fn every_tensor_is_accounted_for() {
    for layout in LAYOUTS {
        let folder = folder(layout, |_| ());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let (device, options) = (Device::flex(), LoadOptions::default());
        assert!(checkpoint.unused(&Pair::new(&device), &options).is_empty(), "{layout}");
        let mut read = 0;
        let pair = checkpoint.load(Pair::new(&device), &options, |state| {
            read = state.bytes_done;
            assert!(state.bytes_done <= state.bytes_total);
        });
        let biases = checkpoint.tensor("up.bias").map_or(0, |bias| bias.len_bytes());
        let stored: usize = checkpoint.tensors().map(|(_, entry)| entry.len_bytes()).sum();
        assert_eq!(read, (stored - biases) as u64, "{layout}");
        let memory = options.memory(&pair.unwrap(), Some(&checkpoint), &device);
        let mapped = if layout == "compressed-tensors" { D_OUT * D_IN / 2 } else { 0 };
        assert_eq!(memory.mapped, (mapped + 16) as u64, "{layout}: the plain weight is mapped too");
        assert_eq!(memory.total(), (D_OUT * D_IN / 2 + 8 * D_OUT * D_IN / GROUP + 16) as u64, "{layout}");
    }
    let folder = folder("gptq", |tensors| tensors[3].bytes = vec![1; 2 * D_OUT].into());
    let unused = Checkpoint::open(folder.path()).unwrap().unused(&Pair::new(&Device::flex()), &LoadOptions::default());
    assert_eq!(unused, ["up.bias"], "a bias that is not zero");
}

#[test]
fn faulty_files_are_rejected_before_anything_is_read() {
    let load = |folder: &TempDir| {
        let mut is_read = false;
        let checkpoint = Checkpoint::open(folder.path())?;
        let result = checkpoint.load(Pair::new(&Device::flex()), &LoadOptions::default(), |_| is_read = true);
        assert!(!is_read);
        result
    };
    let truncated = folder("gptq", |tensors| tensors[0] = tensor("up.qweight", Dtype::I32, &[7, D_OUT], vec![0; 672]));
    let error = load(&truncated).unwrap_err().to_string();
    assert!(error.contains("tensor `up.weight`: `up.qweight` has shape [7, 24]; expected [8, 24]"), "{error}");
    let index = folder("gptq-act-order", |tensors| tensors[4].bytes = [5, 0, 0, 0].repeat(D_IN).into());
    let error = load(&index).unwrap_err().to_string();
    assert!(error.contains("`up.g_idx`[0] is 5; expected a group from 0 to 1"), "{error}");
    let missing = folder("awq", |tensors| drop(tensors.remove(1)));
    let error = load(&missing).unwrap_err().to_string();
    assert!(error.contains("`up.qzeros` is missing"), "{error}");
}

#[test]
fn int4_weights_cannot_be_quantised_to_nf4() {
    let folder = folder("awq", |_| ());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let format = PackedFormat::FourBit(FourBitType::Nf4);
    let quantize = Some(Quantization { format, double_quant: false, modules_to_not_convert: Vec::new() });
    let (device, options) = (Device::flex(), LoadOptions { quantize, ..LoadOptions::default() });
    let error = checkpoint.load(Pair::new(&device), &options, |_| ()).unwrap_err();
    assert!(matches!(error, CheckpointError::AlreadyQuantized { found: "int4", asked: "nf4", .. }), "{error}");
    let target = tempfile::tempdir().unwrap();
    let written = write_quantized(&checkpoint, &Pair::new(&device), &options, target.path(), |_| Ok(()));
    let Err::<(), CheckpointError>(error) = written else { panic!("the weight is quantised already") };
    assert!(matches!(error, CheckpointError::AlreadyQuantized { found: "int4", asked: "nf4", .. }), "{error}");
}

#[test]
fn order_of_the_inputs_is_applied_to_batches() {
    let folder = folder("gptq-act-order", |_| ());
    let pair = load(folder.path(), &Device::flex());
    let x = Tensor::<3>::from_data(TensorData::new(vec![0.5f32; 2 * 3 * D_IN], [2, 3, D_IN]), &Device::flex());
    let sums = (dequantized(&pair.up).sum_dim(1) * 0.5).reshape([1, 1, D_OUT]).expand([2, 3, D_OUT]);
    assert_close("batch", &pair.up.forward(x), &sums, EXACT);
}
