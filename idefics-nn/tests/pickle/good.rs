//! What `torch.save` wrote, against what safetensors wrote.

use std::collections::BTreeMap;
use std::path::Path;

use idefics_nn::checkpoint::pickle::{PickleFault, PickleFile};
use safetensors::{Dtype, SafeTensors};
use tempfile::NamedTempFile;

use super::write::{Entry, dict, entries, file, floats, no_hooks, program, view, zip, zip_around_hole, zip_with};
use super::{FIXTURES, fixture, read};
use crate::memory::measure;

type Content = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn content(file: &[u8]) -> Content {
    let tensors = read(file).unwrap();
    let count = tensors.len();
    let content: Content = tensors
        .into_iter()
        .map(|tensor| {
            let bytes = tensor.bytes(file).unwrap().into_owned();
            (tensor.name, (tensor.dtype, tensor.shape, bytes))
        })
        .collect();
    assert_eq!(content.len(), count);
    content
}

fn twin(name: &str) -> Content {
    let file = fixture(&format!("{name}.safetensors"));
    let tensors = SafeTensors::deserialize(&file).unwrap();
    tensors
        .iter()
        .map(|(name, tensor)| (name.to_owned(), (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())))
        .collect()
}

#[test]
fn every_file_equals_its_twin() {
    for name in FIXTURES.into_iter().chain(["no_checksums"]) {
        let content = content(&fixture(&format!("{name}.bin")));
        let twin = twin(name);
        assert_eq!(content.keys().collect::<Vec<_>>(), twin.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, expected) in &twin {
            assert_eq!(&content[tensor], expected, "{name}: {tensor}");
        }
    }
}

#[test]
fn the_fixtures_have_what_they_are_for() {
    let tensor = |file: &str, name: &str| {
        let tensors = read(&fixture(file)).unwrap();
        tensors.into_iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"))
    };
    assert!(tensor("views.bin", "row").is_contiguous());
    assert!(!tensor("views.bin", "transposed").is_contiguous());
    assert!(!tensor("new_dtypes.bin", "transposed").is_contiguous());
    // One storage: five views lie inside the range of the first.
    let whole = tensor("views.bin", "whole").byte_range();
    for name in ["transposed", "tied", "row", "column", "block"] {
        let range = tensor("views.bin", name).byte_range();
        assert!(whole.start <= range.start && range.end <= whole.end, "{name}");
    }
    assert_eq!(tensor("shapes.bin", "scalar").shape, [0; 0]);
    assert_eq!(tensor("shapes.bin", "empty_matrix").shape, [3, 0]);
    assert_eq!(tensor("state_dict.bin", "layers.1.norm.num_batches_tracked").dtype, Dtype::I64);
    assert_eq!(tensor("data_parallel.bin", "module.layers.0.proj.weight").shape, [2, 3]);
    assert_eq!(tensor("data_parallel.bin", "ema.shadow.w").shape, [2]);
}

#[test]
fn a_file_on_disk() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickle/views.bin");
    let file = PickleFile::open(&path).unwrap();
    let twin = twin("views");
    assert_eq!(file.tensors().map(|tensor| &tensor.name).collect::<Vec<_>>(), twin.keys().collect::<Vec<_>>());
    for (name, (dtype, shape, bytes)) in &twin {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((&tensor.dtype, &tensor.shape, &*file.bytes(name).unwrap()), (dtype, shape, &bytes[..]), "{name}");
    }
    assert!(file.tensor("absent").is_none() && file.bytes("absent").is_none());
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let fault = |path: &Path| {
        let error = PickleFile::open(path).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        error.fault
    };
    assert!(matches!(fault(&folder.path().join("absent.bin")), PickleFault::Io(_)));
    assert!(matches!(fault(folder.path()), PickleFault::NotAFile));
    assert!(matches!(fault(NamedTempFile::new().unwrap().path()), PickleFault::Truncated { found: 0 }));
}

#[test]
fn sixty_four_bit_headers() {
    let value = || dict(&[("w", view(floats(2), 0, &[2], &[1]))]);
    let mut entries = entries(&program(value()), &[("0", &[7; 8])]);
    let plain = content(&zip(&entries));
    assert_eq!(plain["w"].2, [7; 8]);
    assert_eq!(content(&zip_with(&entries, true, |_| ())), plain);
    entries.iter_mut().for_each(|entry| entry.wide = true);
    assert_eq!(content(&zip_with(&entries, true, |_| ())), plain);
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
    let file = NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&bytes[..hole_at], 0).unwrap();
    file.as_file().write_all_at(&bytes[hole_at..], hole_at as u64 + size - 8).unwrap();

    let (file, taken, _) = measure(|| PickleFile::open(file.path()).unwrap());
    assert!(taken < 100_000, "{taken} bytes");
    assert_eq!(file.tensor("all").unwrap().len_bytes() as u64, size);
    assert_eq!(*file.bytes("first").unwrap(), [1; 8]);
    assert_eq!(*file.bytes("last").unwrap(), [0; 4]);
}

#[test]
fn only_views_are_copied() {
    let data: Vec<u8> = (0..=255).cycle().take(4 << 20).collect();
    let file = file(
        dict(&[
            ("matrix", view(floats(1 << 20), 0, &[1024, 1024], &[1024, 1])),
            ("transposed", view(floats(1 << 20), 0, &[1024, 1024], &[1, 1024])),
        ]),
        &[("0", &data)],
    );
    let (tensors, taken, _) = measure(|| read(&file).unwrap());
    assert!(taken < (4 << 20) + 100_000, "{taken} bytes"); // `read` copies the one view to check it
    let (_, taken, _) = measure(|| tensors[0].bytes(&file).unwrap());
    assert_eq!(taken, 0);
    let (copy, taken, _) = measure(|| tensors[1].bytes(&file).unwrap());
    assert!(taken < (4 << 20) + 1000, "{taken} bytes");
    for (row, column) in [(0, 0), (3, 1000), (1023, 1), (1023, 1023)] {
        let (at, from) = (4 * (row * 1024 + column), 4 * (column * 1024 + row));
        assert_eq!(copy[at..at + 4], data[from..from + 4]);
    }
}

#[test]
fn a_byte_order_that_is_not_there() {
    let value = || program(dict(&[("w", view(floats(2), 0, &[2], &[1]))]));
    for order in [b"little".as_slice(), b"little\n"] {
        let mut entries = entries(&value(), &[("0", &[0; 8])]);
        entries.push(Entry::new("archive/byteorder", order));
        assert_eq!(content(&zip(&entries)).len(), 1);
    }
    for version in [&b"1"[..], b"2\n", b"3", b"10\n"] {
        let mut entries = entries(&value(), &[("0", &[0; 8])]);
        entries[1] = Entry::new("archive/version", version);
        assert_eq!(content(&zip(&entries)).len(), 1);
    }
}

#[test]
fn an_empty_dictionary() {
    assert!(content(&file(dict(&[]), &[])).is_empty());
    assert!(content(&file(no_hooks(), &[])).is_empty());
}
