//! PyTorch files as checkpoints: the same weights as from safetensors, or a refusal that says why.

use std::collections::BTreeMap;
use std::path::Path;

use idefics_checkpoint::pickle::PickleFault;
use idefics_checkpoint::{Checkpoint, CheckpointError, Pickles, TensorEntry};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::memory::measure;
use crate::pickle::write::{Entry, dict, entries, file, floats, program, view, zip_around_hole};
use crate::pickle::{FIXTURES, fixture};

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

/// Type, shape and bytes of every tensor.
type Content = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn content(checkpoint: &Checkpoint) -> Content {
    let one = |(name, tensor): (&str, &TensorEntry)| {
        (name.to_owned(), (tensor.dtype, tensor.shape.clone(), tensor.bytes().to_vec()))
    };
    checkpoint.tensors().map(one).collect()
}

#[test]
fn a_pickle_is_its_twin_bit_for_bit() {
    for name in FIXTURES {
        let pickled = folder_with(&[("pytorch_model.bin", fixture(&format!("{name}.bin")))]);
        let twin = folder_with(&[("model.safetensors", fixture(&format!("{name}.safetensors")))]);
        assert_eq!(content(&open(pickled.path()).unwrap()), content(&Checkpoint::open(twin.path()).unwrap()), "{name}");
    }
}

#[test]
fn what_is_no_file_of_weights_is_refused() {
    let empty = folder_with(&[("pytorch_model.bin", Vec::new())]);
    assert!(matches!(open(empty.path()).unwrap_err(), CheckpointError::Truncated { .. }));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("pytorch_model.bin")).unwrap();
    assert!(matches!(open(folder.path()).unwrap_err(), CheckpointError::NotAFile { .. }));
}

#[cfg(target_os = "linux")] // where a file may have a hole
#[test]
fn a_shard_larger_than_four_gigabytes_is_not_read() {
    use std::os::unix::fs::FileExt;

    let elements = 1_300_000_000;
    let value = dict(&[
        ("first", view(floats(elements), 0, &[2], &[1])),
        ("last", view(floats(elements), elements - 1, &[1], &[1])),
        ("all", view(floats(elements), 0, &[13, 100_000_000], &[100_000_000, 1])),
    ]);
    let size = 4 * elements as u64;
    let mut entries = entries(&program(value), &[("0", &[1; 8])]);
    entries[1..].reverse(); // `version` behind the storage, and behind 4 GiB
    entries[1] = Entry { wide: true, sizes: [size; 2], local_size: size, hole: size - 8, ..entries[1].clone() };
    entries[2].wide = true;
    let (bytes, hole_at) = zip_around_hole(&entries, true, |_| ());
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("pytorch_model.bin")).unwrap();
    file.write_all_at(&bytes[..hole_at], 0).unwrap();
    file.write_all_at(&bytes[hole_at..], hole_at as u64 + size - 8).unwrap();

    let (checkpoint, taken, _) = measure(|| open(folder.path()).unwrap());
    assert!(taken < 100_000, "{taken} bytes");
    let bytes = |name: &str| checkpoint.tensor(name).unwrap().bytes();
    assert_eq!(bytes("all").len() as u64, size);
    assert_eq!((bytes("first"), bytes("last")), (&[1; 8][..], &[0; 4][..]));
}

#[test]
fn shards_are_found_by_their_index() {
    let names: Vec<String> =
        content(&open(folder_with(&[("pytorch_model.bin", fixture("protocol_3.bin"))]).path()).unwrap())
            .into_keys()
            .collect();
    let shard = "pytorch_model-00001-of-00001.bin";
    let weight_map: BTreeMap<&str, &str> = names.iter().map(|name| (name.as_str(), shard)).collect();
    let index = serde_json::json!({"weight_map": weight_map}).to_string().into_bytes();
    let folder = folder_with(&[(shard, fixture("protocol_3.bin")), ("pytorch_model.bin.index.json", index.clone())]);
    assert_eq!(content(&open(folder.path()).unwrap()).into_keys().collect::<Vec<_>>(), names);
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

#[test]
fn a_transposed_matrix_is_the_same_however_often_it_is_read() {
    let data: Vec<u8> = (0..6).flat_map(|index| (index as f32).to_le_bytes()).collect();
    let transposed = || view(floats(6), 0, &[2, 3], &[1, 2]);
    let pickle = file(dict(&[("layer.weight", transposed()), ("table", transposed())]), &[("0", &data)]);
    let folder = folder_with(&[("pytorch_model.bin", pickle)]);
    let checkpoint = open(folder.path()).unwrap();
    let expected: Vec<u8> = [0_f32, 2.0, 4.0, 1.0, 3.0, 5.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    for _ in 0..3 {
        for (name, entry) in checkpoint.tensors() {
            assert_eq!(entry.bytes(), expected, "{name}");
            entry.release(); // a copy stays, a map comes from the file again
        }
    }
}
