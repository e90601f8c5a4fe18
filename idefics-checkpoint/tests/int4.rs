//! Tests of weights of AWQ, GPTQ and compressed-tensors. Errors name unsupported settings, shapes and groups.

use std::num::NonZeroUsize;

use idefics_checkpoint::{
    Checkpoint, CheckpointError, Dtype, Int4Layout, NamedTensor, ShardWriter, StoredFormat, int4_tensors,
};
use idefics_kernels::formats::{Int4, PackedFormat, Weight};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const DIMS: [usize; 2] = [8, 64];

fn tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> NamedTensor<'static> {
    NamedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
}

/// Builds a tensor of words with arbitrary codes.
fn words(name: &str, shape: [usize; 2]) -> NamedTensor<'static> {
    tensor(name, Dtype::I32, &shape, (0..4 * shape[0] * shape[1]).map(|at| (at * 37 % 251) as u8).collect())
}

/// Builds a tensor of scales, all 1, in F16.
fn scales(name: &str, shape: [usize; 2]) -> NamedTensor<'static> {
    tensor(name, Dtype::F16, &shape, [0x00, 0x3c].repeat(shape[0] * shape[1]))
}

fn index(groups: &[i32]) -> NamedTensor<'static> {
    tensor("up.g_idx", Dtype::I32, &[groups.len()], groups.iter().flat_map(|group| group.to_le_bytes()).collect())
}

/// Builds a GPTQ layer with two groups of 32 inputs.
fn gptq() -> Vec<NamedTensor<'static>> {
    vec![words("up.qweight", [8, 8]), words("up.qzeros", [2, 1]), scales("up.scales", [2, 8])]
}

fn awq() -> Vec<NamedTensor<'static>> {
    vec![words("up.qweight", [64, 1]), words("up.qzeros", [2, 1]), scales("up.scales", [2, 8])]
}

fn compressed() -> Vec<NamedTensor<'static>> {
    let shape = [8i64, 64].iter().flat_map(|dim| dim.to_le_bytes()).collect();
    vec![
        words("up.weight_packed", [8, 8]),
        words("up.weight_zero_point", [1, 2]),
        scales("up.weight_scale", [8, 2]),
        tensor("up.weight_shape", Dtype::I64, &[2], shape),
    ]
}

fn awq_config() -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm"})
}

fn gptq_config() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "checkpoint_format": "gptq"})
}

fn compressed_config() -> Value {
    let weights = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": null});
    let scheme = json!({"targets": ["Linear"], "weights": weights, "input_activations": null});
    json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": scheme}})
}

fn folder(tensors: Vec<NamedTensor<'static>>, file: &str, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut shards = ShardWriter::new(folder.path());
    tensors.into_iter().try_for_each(|tensor| shards.push(tensor)).unwrap();
    shards.finish().unwrap();
    std::fs::write(folder.path().join(file), config.to_string()).unwrap();
    folder
}

fn opened(tensors: Vec<NamedTensor<'static>>, config: &Value) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(folder(tensors, "config.json", &json!({"quantization_config": config})).path())
}

/// Checks and reads the weight `up.weight`, and reads the order of its inputs.
fn read(tensors: Vec<NamedTensor<'static>>, config: &Value) -> Result<(Vec<f32>, Option<Vec<u32>>), CheckpointError> {
    let checkpoint = opened(tensors, config)?;
    let stored = checkpoint.stored("up.weight").unwrap();
    let checked = checkpoint.check_packed("up.weight", &stored, DIMS);
    let weight = checkpoint.read_packed("up.weight", &stored, DIMS);
    // `check_packed` finds the same errors as `read_packed`, except invalid scales.
    assert!(checked.is_ok() || checked.unwrap_err().to_string() == weight.as_ref().unwrap_err().to_string());
    Ok((weight?.dequantize(), checkpoint.input_order("up.weight", &stored, DIMS)?))
}

fn error(tensors: Vec<NamedTensor<'static>>, config: &Value) -> String {
    read(tensors, config).unwrap_err().to_string()
}

/// Returns the settings with one value changed. `path` is the JSON pointer of this value.
fn with(mut config: Value, path: &str, value: Value) -> Value {
    let (parent, key) = path.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
    config
}

#[test]
fn layouts_are_recognised_and_all_tensors_belong_to_the_weight() {
    let group = NonZeroUsize::new(32).unwrap();
    let index = || index(&[0, 1].map(|group| [group; 32]).concat());
    let [gptq_v1, gptq_v2] = [1, 0].map(|zero_offset| Int4Layout::Gptq { zero_offset });
    let v2 = with(gptq_config(), "/checkpoint_format", "gptq_v2".into());
    for (tensors, config, layout) in [
        (awq(), awq_config(), Int4Layout::Awq),
        (gptq(), gptq_config(), gptq_v1),
        ([gptq(), vec![index()]].concat(), v2, gptq_v2),
        (compressed(), compressed_config(), Int4Layout::CompressedTensors),
    ] {
        let count = tensors.len();
        let checkpoint = opened(tensors, &config).unwrap();
        let stored = checkpoint.stored("up.weight").unwrap();
        assert_eq!((stored.kind, stored.companions.len()), (StoredFormat::Int4 { layout, group }, count));
        assert_eq!(checkpoint.packed_formats().collect::<Vec<_>>(), [PackedFormat::Int4 { group }]);
        assert!(stored.kind.to_string().starts_with("int4 ("), "{}", stored.kind);
        checkpoint.check_packed("up.weight", &stored, DIMS).unwrap();
        assert_eq!(checkpoint.input_order("up.weight", &stored, DIMS).unwrap(), None);
    }
}

#[test]
fn zero_points_of_the_first_gptq_format_are_one_larger() {
    let (first, _) = read(gptq(), &gptq_config()).unwrap();
    let (second, _) = read(gptq(), &with(gptq_config(), "/checkpoint_format", "gptq_v2".into())).unwrap();
    assert!(first.iter().zip(&second).all(|(first, second)| first + 1.0 == *second));
}

#[test]
fn settings_in_files_of_their_own_are_read() {
    let gptq_file = json!({"bits": 4, "group_size": 32, "desc_act": false});
    let awq_file = json!({"w_bit": 4, "q_group_size": 32, "zero_point": true, "version": "GEMM"});
    for (tensors, file, config) in [(gptq(), "quantize_config.json", gptq_file), (awq(), "quant_config.json", awq_file)]
    {
        let folder = folder(tensors, file, &config);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stored = checkpoint.stored("up.weight").unwrap();
        checkpoint.read_packed("up.weight", &stored, DIMS).unwrap();
    }
}

#[test]
fn layers_that_are_not_quantised_are_dense() {
    let plain = tensor("down.weight", Dtype::F32, &[1, 1], vec![0; 4]);
    let checkpoint = opened([awq(), vec![plain]].concat(), &awq_config()).unwrap();
    assert_eq!(checkpoint.stored("down.weight").unwrap().kind, StoredFormat::Dense);
    assert!(checkpoint.stored("up.bias").is_none() && checkpoint.stored("other.weight").is_none());
}

#[test]
fn biases_of_zeros_beside_packed_codes_are_empty() {
    let bias = |name: &str, value| tensor(name, Dtype::F16, &[1], vec![0, value]);
    let tensors = [gptq(), vec![bias("up.bias", 0), bias("norm.bias", 0)]].concat();
    let checkpoint = opened(tensors, &gptq_config()).unwrap();
    assert!(checkpoint.is_empty_bias("up.bias") && !checkpoint.is_empty_bias("norm.bias"));
    let checkpoint = opened([gptq(), vec![bias("up.bias", 1)]].concat(), &gptq_config()).unwrap();
    assert!(!checkpoint.is_empty_bias("up.bias"));
}

#[test]
fn errors_name_unsupported_settings() {
    let weights = "/config_groups/group_0/weights";
    let cases = [
        (awq(), with(awq_config(), "/version", "gemv".into()), "version is \"gemv\"; expected gemm"),
        (awq(), with(awq_config(), "/version", "marlin".into()), "version is \"marlin\"; expected gemm"),
        (awq(), with(awq_config(), "/version", "exllama".into()), "version is \"exllama\"; expected gemm"),
        (awq(), with(awq_config(), "/bits", 8.into()), "bits is 8; expected 4"),
        (awq(), with(awq_config(), "/zero_point", false.into()), "zero_point is false; expected true"),
        (awq(), with(awq_config(), "/group_size", 0.into()), "group_size is 0; expected a positive number, or -1"),
        (gptq(), with(gptq_config(), "/bits", 3.into()), "bits is 3; expected 4"),
        (gptq(), with(gptq_config(), "/bits", 8.into()), "bits is 8; expected 4"),
        (
            gptq(),
            with(gptq_config(), "/group_size", (-2).into()),
            "group_size is -2; expected a positive number, or -1",
        ),
        (
            gptq(),
            with(gptq_config(), "/checkpoint_format", "marlin".into()),
            "checkpoint_format is \"marlin\"; expected gptq or gptq_v2",
        ),
        (gptq(), with(gptq_config(), "/dynamic", json!({"+:up": {"bits": 8}})), "dynamic is {\"+:up\":{\"bits\":8}}"),
        (gptq(), with(gptq_config(), "/quant_method", "auto-round".into()), "quant_method is \"auto-round\""),
        (
            compressed(),
            with(compressed_config(), "/format", "marlin-24".into()),
            "format is \"marlin-24\"; expected pack-quantized",
        ),
        (
            compressed(),
            with(compressed_config(), &format!("{weights}/num_bits"), 8.into()),
            "config_groups.group_0.weights.num_bits is 8; expected 4",
        ),
        (
            compressed(),
            with(compressed_config(), &format!("{weights}/type"), "float".into()),
            "weights.type is \"float\"; expected int",
        ),
        (
            compressed(),
            with(compressed_config(), &format!("{weights}/strategy"), "tensor".into()),
            "weights.strategy is \"tensor\"; expected group or channel",
        ),
        (
            compressed(),
            with(compressed_config(), "/config_groups/group_0/input_activations", json!({"num_bits": 8})),
            "group_0.input_activations is {\"num_bits\":8}; expected null",
        ),
        (
            compressed(),
            with(compressed_config(), "/config_groups", json!({})),
            "config_groups is {}; expected a scheme",
        ),
        (
            compressed(),
            with(compressed_config(), "/kv_cache_scheme", json!({"num_bits": 8})),
            "kv_cache_scheme is {\"num_bits\":8}; expected null",
        ),
    ];
    for (tensors, config, expected) in cases {
        let message = opened(tensors, &config).unwrap_err().to_string();
        assert!(
            message.contains(&format!("quantization_config.{expected}")) || message.contains(expected),
            "{message}"
        );
        assert!(message.contains("config.json"), "{message}");
    }
    let none = opened(gptq(), &Value::Null).unwrap_err().to_string();
    assert!(none.contains("tensor `up.qweight` holds packed codes, but config.json has no"), "{none}");
    // Modules that are excluded from quantisation need no settings.
    opened(gptq(), &with(gptq_config(), "/dynamic", json!({"-:.*vision.*": {}}))).unwrap();
}

#[test]
fn errors_name_tensors_of_the_wrong_type_or_shape() {
    let replaced = |tensors: Vec<NamedTensor<'static>>, new: NamedTensor<'static>| -> Vec<NamedTensor<'static>> {
        tensors.into_iter().map(|old| if old.name == new.name { new.clone() } else { old }).collect()
    };
    let without = |tensors: Vec<NamedTensor<'static>>, name: &str| -> Vec<NamedTensor<'static>> {
        tensors.into_iter().filter(|tensor| tensor.name != name).collect()
    };
    let infinite = tensor("up.scales", Dtype::F16, &[2, 8], [0x00, 0x7c].repeat(16));
    let cases = [
        (
            replaced(awq(), words("up.qweight", [63, 1])),
            awq_config(),
            "`up.qweight` has shape [63, 1]; expected [64, 1]",
        ),
        (replaced(awq(), words("up.qzeros", [1, 1])), awq_config(), "`up.qzeros` has shape [1, 1]; expected [2, 1]"),
        (without(awq(), "up.scales"), awq_config(), "`up.scales` is missing"),
        (
            replaced(gptq(), words("up.qweight", [7, 8])),
            gptq_config(),
            "`up.qweight` has shape [7, 8]; expected [8, 8]",
        ),
        (replaced(gptq(), scales("up.scales", [3, 8])), gptq_config(), "`up.scales` has shape [3, 8]; expected [2, 8]"),
        (without(gptq(), "up.qzeros"), gptq_config(), "`up.qzeros` is missing"),
        (
            replaced(gptq(), tensor("up.qzeros", Dtype::F32, &[2, 1], vec![0; 8])),
            gptq_config(),
            "`up.qzeros` is F32; expected I32 or U32",
        ),
        (replaced(gptq(), infinite), gptq_config(), "int4 scales[0] is inf"),
        (gptq(), with(gptq_config(), "/desc_act", true.into()), "`up.g_idx` is missing"),
        ([gptq(), vec![index(&[0; 63])]].concat(), gptq_config(), "`up.g_idx` has shape [63]; expected [64]"),
        (
            [gptq(), vec![index(&[&[0; 40][..], &[2], &[1; 23]].concat())]].concat(),
            gptq_config(),
            "`up.g_idx`[40] is 2; expected a group from 0 to 1",
        ),
        (
            [gptq(), vec![index(&[&[-1][..], &[0; 31], &[1; 32]].concat())]].concat(),
            gptq_config(),
            "`up.g_idx`[0] is -1; expected a group from 0 to 1",
        ),
        (
            [gptq(), vec![index(&[&[0; 31][..], &[1; 33]].concat())]].concat(),
            gptq_config(),
            "`up.g_idx` puts 31 inputs into group 0; expected 32",
        ),
        (
            [gptq(), vec![index(&[&[0; 33][..], &[1; 31]].concat())]].concat(),
            gptq_config(),
            "`up.g_idx` puts 33 inputs into group 0; expected 32",
        ),
        (
            replaced(compressed(), words("up.weight_packed", [8, 7])),
            compressed_config(),
            "`up.weight_packed` has shape [8, 7]; expected [8, 8]",
        ),
        (
            replaced(compressed(), scales("up.weight_scale", [8, 1])),
            compressed_config(),
            "`up.weight_scale` has shape [8, 1]; expected [8, 2]",
        ),
        (
            replaced(compressed(), tensor("up.weight_shape", Dtype::I64, &[2], vec![0; 16])),
            compressed_config(),
            "`up.weight_shape` stores the shape [0, 0], but the configuration requires [8, 64]",
        ),
    ];
    for (tensors, config, expected) in cases {
        let message = error(tensors, &config);
        assert!(message.contains(expected), "{message}\nshould contain {expected}");
        assert!(message.contains("tensor `up.weight`"), "{message}");
    }
}

#[test]
fn rejects_dimensions_that_are_not_multiples_of_words_and_groups() {
    let checkpoint = opened(awq(), &awq_config()).unwrap();
    let stored = checkpoint.stored("up.weight").unwrap();
    for dims in [[7, 64], [8, 63]] {
        let error = checkpoint.check_packed("up.weight", &stored, dims).unwrap_err().to_string();
        assert!(error.contains("d_out must be a multiple of 8, and d_in a multiple of 32"), "{error}");
    }
}

#[test]
fn inputs_are_sorted_by_group() {
    let alternating: Vec<i32> = (0..64).map(|input| input % 2).collect();
    let tensors = [gptq(), vec![index(&alternating)]].concat();
    let (sorted, order) = read(tensors, &with(gptq_config(), "/desc_act", true.into())).unwrap();
    let order = order.unwrap();
    assert_eq!(order, (0..64).step_by(2).chain((1..64).step_by(2)).collect::<Vec<u32>>());
    // Each value is the code of its input minus the zero point of its group. All scales are 1.
    let codes = words("up.qweight", [8, 8]).bytes;
    let zeros = words("up.qzeros", [2, 1]).bytes;
    for (column, input) in order.iter().map(|input| *input as usize).enumerate() {
        for row in 0..DIMS[0] {
            let code = codes[4 * (input / 8 * 8 + row) + input % 8 / 2] >> (4 * (input % 2)) & 15;
            let zero = (zeros[4 * (input % 2) + row / 2] >> (4 * (row % 2)) & 15) + 1;
            assert_eq!(sorted[row * DIMS[1] + column], f32::from(code) - f32::from(zero), "{row} {input}");
        }
    }
}

/// Training saves int4 weights in this project's own layout.
#[test]
fn own_layout_round_trips() {
    let values: Vec<f32> = (0..8 * 65).map(|index| ((index * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let group = NonZeroUsize::new(16).unwrap();
    let weight = Int4::quantize(&values, group, [8, 65]).unwrap();
    let order: Vec<i32> = (0..65).rev().collect();
    for order in [None, Some(&order[..])] {
        let tensors = int4_tensors("up.weight", weight.clone(), order);
        let count = tensors.len();
        let folder = folder(tensors, "config.json", &json!({}));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let stored = checkpoint.stored("up.weight").unwrap();
        assert_eq!(stored.kind, StoredFormat::Own(PackedFormat::Int4 { group }));
        assert_eq!(1 + stored.companions.len(), count);
        assert_eq!(checkpoint.read_packed("up.weight", &stored, [8, 65]).unwrap(), Weight::from(weight.clone()));
        let read = checkpoint.input_order("up.weight", &stored, [8, 65]).unwrap();
        assert_eq!(read, order.map(|order| order.iter().map(|input| input.cast_unsigned()).collect()));
    }
    let twice = int4_tensors("up.weight", weight, Some(&[0; 65]));
    let folder = folder(twice, "config.json", &json!({}));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let stored = checkpoint.stored("up.weight").unwrap();
    let error = checkpoint.input_order("up.weight", &stored, [8, 65]).unwrap_err().to_string();
    assert!(error.contains("`up.weight.order`[1] is 0; expected each number from 0 to 65 - 1 exactly once"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Reading returns a weight or an error, whatever the tensors and settings are.
    #[test]
    fn any_tensors_and_settings_are_read_or_rejected(
        layout in 0usize..3,
        shapes in prop::collection::vec(prop::collection::vec(0usize..70, 0..4), 4),
        group in -3i64..70,
        values in prop::collection::vec(any::<i32>(), 0..70),
        dims in [0usize..20, 0usize..70],
    ) {
        let sets = [(awq(), awq_config()), (gptq(), gptq_config()), (compressed(), compressed_config())];
        let (mut tensors, config) = sets[layout].clone();
        for (tensor, shape) in tensors.iter_mut().zip(&shapes).filter(|(_, shape)| !shape.is_empty()) {
            let size = match tensor.dtype { Dtype::F16 => 2, Dtype::I64 => 8, _ => 4 };
            let count: usize = shape.iter().product();
            (tensor.shape, tensor.bytes) = (shape.clone(), vec![1u8; size * count].into());
        }
        let mut index = index(&values);
        if layout == 2 {
            index.name = "up.weight_g_idx".to_owned();
        }
        tensors.push(index);
        let path = if layout == 2 { "/config_groups/group_0/weights/group_size" } else { "/group_size" };
        if let Ok(checkpoint) = opened(tensors, &with(config, path, group.into())) {
            let stored = checkpoint.stored("up.weight").unwrap();
            let checked = checkpoint.check_packed("up.weight", &stored, dims).is_ok();
            let weight = checkpoint.read_packed("up.weight", &stored, dims);
            prop_assert!(checked || weight.is_err());
        }
    }
}
