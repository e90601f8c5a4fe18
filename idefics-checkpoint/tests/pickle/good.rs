//! Tests of valid files: tensors saved by `torch.save` equal those saved by safetensors.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use super::write::{Entry, dict, entries, file, floats, no_hooks, program, view, zip, zip_with};
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
fn every_fixture_matches_its_safetensors_twin() {
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
fn fixtures_cover_the_intended_cases() {
    let tensor = |file: &str, name: &str| {
        let tensors = read(&fixture(file)).unwrap();
        tensors.into_iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"))
    };
    assert!(tensor("views.bin", "row").is_contiguous());
    assert!(!tensor("views.bin", "transposed").is_contiguous());
    assert!(!tensor("new_dtypes.bin", "transposed").is_contiguous());
    // The tensors of `views.bin` below are views of one storage, and lie within the byte range of `whole`.
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
fn reads_64_bit_headers() {
    let value = || dict(&[("w", view(floats(2), 0, &[2], &[1]))]);
    let mut entries = entries(&program(value()), &[("0", &[7; 8])]);
    let plain = content(&zip(&entries));
    assert_eq!(plain["w"].2, [7; 8]);
    assert_eq!(content(&zip_with(&entries, true, |_| ())), plain);
    entries.iter_mut().for_each(|entry| entry.wide = true);
    assert_eq!(content(&zip_with(&entries, true, |_| ())), plain);
}

#[test]
fn only_strided_views_are_copied() {
    let data: Vec<u8> = (0..=255).cycle().take(4 << 20).collect();
    let file = file(
        dict(&[
            ("matrix", view(floats(1 << 20), 0, &[1024, 1024], &[1024, 1])),
            ("transposed", view(floats(1 << 20), 0, &[1024, 1024], &[1, 1024])),
        ]),
        &[("0", &data)],
    );
    let (tensors, allocated, _) = measure(|| read(&file).unwrap());
    assert!(allocated < (4 << 20) + 100_000, "{allocated} bytes"); // `read` copies the transposed view to check it
    let (_, allocated, _) = measure(|| tensors[0].bytes(&file).unwrap());
    assert_eq!(allocated, 0);
    let (copy, allocated, _) = measure(|| tensors[1].bytes(&file).unwrap());
    assert!(allocated < (4 << 20) + 1000, "{allocated} bytes");
    for (row, column) in [(0, 0), (3, 1000), (1023, 1), (1023, 1023)] {
        let (at, from) = (4 * (row * 1024 + column), 4 * (column * 1024 + row));
        assert_eq!(copy[at..at + 4], data[from..from + 4]);
    }
}

#[test]
fn accepts_optional_byte_order_and_known_versions() {
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
fn accepts_empty_dictionaries() {
    assert!(content(&file(dict(&[]), &[])).is_empty());
    assert!(content(&file(no_hooks(), &[])).is_empty());
}
