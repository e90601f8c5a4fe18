//! PyTorch files as checkpoints: the same weights as from safetensors, or a refusal that says why.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::checkpoint::Pickles;
use idefics_nn::checkpoint::pickle::PickleFault;
use idefics_nn::{Checkpoint, CheckpointError, Linear, LoadOptions, normal};
use tempfile::TempDir;

use crate::common::values;
use crate::pickle::fixture;
use crate::pickle::write::{dict, file, floats, view};

fn folder_with(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open_with(folder, Pickles::Allowed)
}

type Facts = BTreeMap<String, (String, Vec<usize>, usize)>;

fn facts(checkpoint: &Checkpoint) -> Facts {
    let fact = |(name, tensor): (&str, &idefics_nn::checkpoint::TensorEntry)| {
        (name.to_owned(), (format!("{:?}", tensor.dtype), tensor.shape.clone(), tensor.len_bytes()))
    };
    checkpoint.tensors().map(fact).collect()
}

#[test]
fn a_pickle_lists_what_its_twin_does() {
    for name in ["state_dict", "views", "dtypes", "old_layout"] {
        let pickled = folder_with(&[("pytorch_model.bin", fixture(&format!("{name}.bin")))]);
        let twin = folder_with(&[("model.safetensors", fixture(&format!("{name}.safetensors")))]);
        assert_eq!(facts(&open(pickled.path()).unwrap()), facts(&Checkpoint::open(twin.path()).unwrap()), "{name}");
    }
}

#[test]
fn shards_are_found_by_their_index() {
    let names: Vec<String> =
        facts(&open(folder_with(&[("pytorch_model.bin", fixture("protocol_3.bin"))]).path()).unwrap())
            .into_keys()
            .collect();
    let shard = "pytorch_model-00001-of-00001.bin";
    let weight_map: BTreeMap<&str, &str> = names.iter().map(|name| (name.as_str(), shard)).collect();
    let index = serde_json::json!({"weight_map": weight_map}).to_string().into_bytes();
    let folder = folder_with(&[(shard, fixture("protocol_3.bin")), ("pytorch_model.bin.index.json", index.clone())]);
    assert_eq!(facts(&open(folder.path()).unwrap()).into_keys().collect::<Vec<_>>(), names);
    let missing = folder_with(&[("pytorch_model.bin.index.json", index)]);
    assert!(matches!(open(missing.path()).unwrap_err(), CheckpointError::ShardMissing { .. }));
}

#[test]
fn pickles_are_refused_unless_they_are_allowed() {
    let folder = folder_with(&[("pytorch_model.bin", fixture("state_dict.bin"))]);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::PickleRefused { .. }));
    let message = error.to_string();
    assert!(message.contains("pytorch_model.bin") && message.contains("--allow-pickle"), "{message}");
}

#[test]
fn safetensors_come_first() {
    let folder = folder_with(&[
        ("pytorch_model.bin", b"not read".to_vec()),
        ("model.safetensors", fixture("state_dict.safetensors")),
    ]);
    assert!(open(folder.path()).is_ok() && Checkpoint::open(folder.path()).is_ok());
}

#[test]
fn a_fault_names_the_file_and_keeps_its_type() {
    let mut cut = fixture("state_dict.bin");
    cut.truncate(cut.len() / 2);
    let folder = folder_with(&[("pytorch_model.bin", cut)]);
    let CheckpointError::Pickle(error) = open(folder.path()).unwrap_err() else { panic!("a fault of the pickle") };
    assert!(error.path.ends_with("pytorch_model.bin"));
    assert!(matches!(error.fault, PickleFault::Truncated { .. }), "{error}");
}

#[derive(Module, Debug)]
struct Matrix {
    layer: Linear,
    table: Param<Tensor<2>>,
}

#[test]
fn a_transposed_matrix_is_the_same_however_often_it_is_loaded() {
    let data: Vec<u8> = (0..6).flat_map(|index| (index as f32).to_le_bytes()).collect();
    let transposed = || view(floats(6), 0, &[2, 3], &[1, 2]);
    let pickle = file(dict(&[("layer.weight", transposed()), ("table", transposed())]), &[("0", &data)]);
    let folder = folder_with(&[("pytorch_model.bin", pickle)]);
    let checkpoint = open(folder.path()).unwrap();
    let device = Device::flex();
    for dtype in [DType::F32, DType::BF16, DType::F32] {
        let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
        let matrix =
            Matrix { layer: Linear::new_without_bias(3, 2, &device), table: normal([2, 3], 0.0, 1.0, &device) };
        let matrix = checkpoint.load(matrix, &options, |_| ()).unwrap();
        assert_eq!(values(matrix.table.val()), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0], "{dtype:?}");
        let columns = matrix.layer.forward(Tensor::<2>::eye(3, &device)); // [3, 2]
        assert_eq!(values(columns), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "{dtype:?}");
    }
}
