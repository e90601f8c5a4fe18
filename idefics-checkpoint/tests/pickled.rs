//! Tests of PyTorch files as checkpoints: the weights equal those from safetensors, or an error says what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use idefics_checkpoint::pickle::PickleFault;
use idefics_checkpoint::{Checkpoint, CheckpointError, PicklePolicy, TensorEntry};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::memory::measure;
use crate::pickle::write::{Entry, dict, entries, file, floats, program, view, zip_with_hole};
use crate::pickle::{FIXTURES, fixture};

fn folder_with(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open_with(folder, PicklePolicy::Allowed)
}

/// Type, shape and bytes of every tensor, by name.
type Content = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn content(checkpoint: &Checkpoint) -> Content {
    let one = |(name, tensor): (&str, &TensorEntry)| {
        (name.to_owned(), (tensor.dtype, tensor.shape.clone(), tensor.bytes().to_vec()))
    };
    checkpoint.tensors().map(one).collect()
}

#[test]
fn pickles_match_their_safetensors_twins_bit_for_bit() {
    for name in FIXTURES {
        let pickled = folder_with(&[("pytorch_model.bin", fixture(&format!("{name}.bin")))]);
        let twin = folder_with(&[("model.safetensors", fixture(&format!("{name}.safetensors")))]);
        assert_eq!(content(&open(pickled.path()).unwrap()), content(&Checkpoint::open(twin.path()).unwrap()), "{name}");
    }
}

#[test]
fn rejects_empty_file_and_directory() {
    let empty = folder_with(&[("pytorch_model.bin", Vec::new())]);
    assert!(matches!(open(empty.path()).unwrap_err(), CheckpointError::Truncated { .. }));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("pytorch_model.bin")).unwrap();
    assert!(matches!(open(folder.path()).unwrap_err(), CheckpointError::NotAFile { .. }));
}

#[cfg(target_os = "linux")] // needs sparse files
#[test]
fn opens_shard_larger_than_4_gib_without_reading_it() {
    use std::os::unix::fs::FileExt;

    let elements = 1_300_000_000;
    let value = dict(&[
        ("first", view(floats(elements), 0, &[2], &[1])),
        ("last", view(floats(elements), elements - 1, &[1], &[1])),
        ("all", view(floats(elements), 0, &[13, 100_000_000], &[100_000_000, 1])),
    ]);
    let size = 4 * elements as u64;
    let mut entries = entries(&program(value), &[("0", &[1; 8])]);
    entries[1..].reverse(); // puts `version` after the storage, beyond 4 GiB
    entries[1] = Entry { wide: true, sizes: [size; 2], local_size: size, hole: size - 8, ..entries[1].clone() };
    entries[2].wide = true;
    let (bytes, hole_at) = zip_with_hole(&entries, true, |_| ());
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("pytorch_model.bin")).unwrap();
    file.write_all_at(&bytes[..hole_at], 0).unwrap();
    file.write_all_at(&bytes[hole_at..], hole_at as u64 + size - 8).unwrap();

    let (checkpoint, allocated, _) = measure(|| open(folder.path()).unwrap());
    assert!(allocated < 100_000, "{allocated} bytes");
    let bytes = |name: &str| checkpoint.tensor(name).unwrap().bytes();
    assert_eq!(bytes("all").len() as u64, size);
    assert_eq!((bytes("first"), bytes("last")), (&[1; 8][..], &[0; 4][..]));
}

#[test]
fn opens_shards_listed_in_the_index() {
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
fn refuses_pickles_by_default() {
    let folder = folder_with(&[("pytorch_model.bin", fixture("state_dict.bin"))]);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::PickleRefused { .. }));
    let message = error.to_string();
    assert!(message.contains("pytorch_model.bin") && message.contains("--allow-pickle"), "{message}");
}

#[test]
fn prefers_safetensors() {
    let folder = folder_with(&[
        ("pytorch_model.bin", b"not read".to_vec()),
        ("model.safetensors", fixture("state_dict.safetensors")),
    ]);
    assert!(open(folder.path()).is_ok() && Checkpoint::open(folder.path()).is_ok());
}

#[test]
fn errors_keep_the_path_and_the_fault() {
    let mut cut = fixture("state_dict.bin");
    cut.truncate(cut.len() / 2);
    let folder = folder_with(&[("pytorch_model.bin", cut)]);
    let CheckpointError::Pickle(error) = open(folder.path()).unwrap_err() else { panic!("expected a pickle error") };
    assert!(error.path.ends_with("pytorch_model.bin"));
    assert!(matches!(error.fault, PickleFault::Truncated { .. }), "{error}");
}

#[test]
fn transposed_matrix_reads_the_same_after_release() {
    let data: Vec<u8> = (0..6).flat_map(|index| (index as f32).to_le_bytes()).collect();
    let transposed = || view(floats(6), 0, &[2, 3], &[1, 2]);
    let pickle = file(dict(&[("layer.weight", transposed()), ("table", transposed())]), &[("0", &data)]);
    let folder = folder_with(&[("pytorch_model.bin", pickle)]);
    let checkpoint = open(folder.path()).unwrap();
    let expected: Vec<u8> = [0_f32, 2.0, 4.0, 1.0, 3.0, 5.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    for _ in 0..3 {
        for (name, entry) in checkpoint.tensors() {
            assert_eq!(entry.bytes(), expected, "{name}");
            entry.release(); // does nothing for a copy; the pages of a mapped tensor are read from the file again
        }
    }
}
