//! Tests of the GGUF container: valid files, a typed error for every fault and limit, and mutated files, which must not
//! cause a panic.

use std::path::Path;

use idefics_checkpoint::CheckpointError;
use idefics_checkpoint::gguf::{GgufError, GgufFault, GgufFile, GgufHeader, GgufValue, parse};
use idefics_kernels::formats::GgufType;
use proptest::prelude::*;

/// Writes those parts of the GGUF container that tests need.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) version: u32,
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    /// For each tensor, a number that is added to its offset.
    pub(crate) shifts: Vec<u64>,
    alignment: usize,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { version: 3, keys: Vec::new(), tensors: Vec::new(), shifts: Vec::new(), alignment: 32 }
    }

    /// Adds a key with this type and these bytes as its value.
    pub(crate) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push((key.to_owned(), [&kind.to_le_bytes(), value].concat()));
        self
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value))
    }

    pub(crate) fn number(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn float(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub(crate) fn texts(self, key: &str, values: &[&str]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| string(value)).collect();
        self.raw(key, 9, &array(8, values.len(), &items))
    }

    pub(crate) fn numbers(self, key: &str, values: &[i32]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, 9, &array(5, values.len(), &items))
    }

    pub(crate) fn floats(self, key: &str, values: &[f32]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key, 9, &array(6, values.len(), &items))
    }

    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), kind, bytes));
        self.shifts.push(0);
        self
    }

    /// Adds a tensor of f32. The contiguous dimension comes first in `dims`.
    pub(crate) fn f32s(self, name: &str, dims: &[u64], value: impl Fn(usize) -> f32) -> Self {
        let n = dims.iter().product::<u64>() as usize;
        self.tensor(name, dims, 0, (0..n).flat_map(|i| value(i).to_le_bytes()).collect())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for ((name, dims, kind, bytes), shift) in self.tensors.iter().zip(&self.shifts) {
            file.extend(string(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend((data.len() as u64).wrapping_add(*shift).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, count: usize, items: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), items].concat()
}

fn tiny() -> Writer {
    Writer::new()
        .text("general.architecture", "llama")
        .number("llama.block_count", 2)
        .raw("small", 1, &[0xff])
        .bool("is", true)
        .float("half", 0.5)
        .texts("words", &["a", "", "ü"])
        .numbers("types", &[1, 3, 6])
        .f32s("norm", &[3], |i| i as f32)
        .tensor("matrix", &[32, 2], 2, vec![7; 36])
}

fn read(file: &[u8]) -> Result<GgufHeader, GgufError> {
    parse(Path::new("some.gguf"), file)
}

fn fault(file: &[u8]) -> GgufFault {
    let error = read(file).unwrap_err();
    assert!(error.to_string().starts_with("some.gguf: ") && error.to_string().contains("GGUF"), "{error}");
    error.fault
}

#[test]
fn reads_keys_and_tensors() {
    for version in [2, 3] {
        let bytes = Writer { version, ..tiny() }.bytes();
        let header = read(&bytes).unwrap();
        let metadata = header.metadata(Path::new("some.gguf"), &bytes);
        assert_eq!(metadata.required_text("general.architecture").unwrap(), "llama");
        assert_eq!(metadata.number("llama.block_count").unwrap(), Some(2));
        assert_eq!(metadata.get("small"), Some(GgufValue::Signed(-1)));
        assert_eq!(metadata.bool("is").unwrap(), Some(true));
        assert_eq!(metadata.float("half").unwrap(), Some(0.5));
        assert_eq!(metadata.texts("words").unwrap().unwrap(), ["a", "", "ü"]);
        assert_eq!(metadata.numbers("types").unwrap().unwrap(), [1, 3, 6]);
        assert_eq!((metadata.get("none"), metadata.iter().count()), (None, 7));
        assert!(metadata.number("small").unwrap_err().to_string().contains("`small` of the GGUF metadata is -1"));
        assert!(matches!(metadata.text("is").unwrap_err().fault, GgufFault::Key { .. }));
        assert!(matches!(metadata.required_number("none").unwrap_err().fault, GgufFault::MissingKey { .. }));

        let [norm, matrix] = header.tensors() else { panic!("two tensors") };
        assert_eq!((norm.name.as_str(), norm.dims.as_slice(), norm.kind), ("norm", &[3][..], GgufType::F32));
        assert_eq!((matrix.dims.as_slice(), matrix.kind), (&[32, 2][..], GgufType::Q4_0));
        assert_eq!(bytes[norm.range.clone()], [0_f32, 1.0, 2.0].map(f32::to_le_bytes).concat());
        assert_eq!(bytes[matrix.range.clone()], [7; 36]);
    }
}

#[test]
fn rejects_other_files_and_versions() {
    assert!(matches!(fault(b""), GgufFault::Magic { .. }));
    assert!(matches!(fault(b"PK\x03\x04 zip"), GgufFault::Magic { .. }));
    assert_eq!(fault(b"GGUF\0\0\0\x03"), GgufFault::BigEndian);
    for version in [0, 1, 4, u32::MAX] {
        assert_eq!(fault(&Writer { version, ..tiny() }.bytes()), GgufFault::Version { found: version });
    }
}

#[test]
fn rejects_file_truncated_anywhere() {
    let good = tiny().bytes();
    let data_end = good.len() - (good.len() - 36) % 32; // without the padding of the last tensor
    for length in (8..data_end.min(good.len() - 28)).step_by(3) {
        let found = fault(&good[..length]);
        assert!(matches!(found, GgufFault::Truncated { .. }), "{length}: {found}");
    }
}

#[test]
fn rejects_counts_that_do_not_fit_the_file() {
    let good = tiny().bytes();
    for (at, what) in [(8, "tensors"), (16, "keys")] {
        for count in [good.len() as u64, u64::from(u32::MAX), u64::MAX / 24, u64::MAX] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let found = fault(&bytes);
            assert!(matches!(&found, GgufFault::Truncated { what: w, .. } if w.contains(what)), "{found}");
        }
    }
    for count in [1 << 20, u64::MAX] {
        let items = [&8_u32.to_le_bytes()[..], &u64::to_le_bytes(count)].concat();
        assert!(matches!(fault(&Writer::new().raw("a", 9, &items).bytes()), GgufFault::Truncated { .. }));
        let text = u64::to_le_bytes(count);
        assert!(matches!(fault(&Writer::new().raw("a", 8, &text).bytes()), GgufFault::Truncated { .. }));
    }
}

#[test]
fn rejects_values_that_the_format_does_not_allow() {
    let array_of_arrays = array(9, 1, &array(4, 0, b""));
    let cases = [
        (Writer::new().raw("a", 13, b""), "expected a value type"),
        (Writer::new().raw("a", 9, &array(13, 0, b"")), "expected a value type"),
        (Writer::new().raw("a", 9, &array_of_arrays), "an array of arrays"),
        (Writer::new().raw("a", 7, &[2]), "expected a bool"),
        (Writer::new().raw("a", 9, &array(7, 3, &[0, 1, 2])), "expected a bool"),
        (Writer::new().number("", 1), "0 bytes long"),
        (Writer::new().number(&"k".repeat(65_536), 1), "65536 bytes long"),
        (Writer::new().number("a", 1).text("a", "b"), "key `a` at byte 41 occurs twice"),
        (tiny().number("general.alignment", 24), "a power of two"),
        (tiny().number("general.alignment", 0), "a power of two"),
        (tiny().number("general.alignment", 1 << 21), "a power of two"),
        (tiny().text("general.alignment", "32"), "a whole number"),
        (tiny().f32s(&"n".repeat(65), &[1], |_| 0.0), "65 bytes long"),
        (tiny().f32s("norm", &[1], |_| 0.0), "tensor `norm`"),
        (tiny().tensor("x", &[], 0, vec![]), "expected 1 to 4"),
        (tiny().tensor("x", &[1; 5], 0, vec![0; 4]), "expected 1 to 4"),
        (tiny().tensor("x", &[4, 0], 0, vec![]), "a dimension of tensor `x`"),
        (tiny().tensor("x", &[1 << 40, 1 << 40], 0, vec![]), "the size of tensor `x`"),
        (tiny().tensor("x", &[1 << 40, 1 << 20], 0, vec![]), "truncated"),
        (tiny().tensor("x", &[33], 8, vec![0; 68]), "a multiple of the block length 32"),
        (tiny().tensor("x", &[128], 12, vec![0; 144]), "a multiple of the block length 256"),
        (tiny().tensor("x", &[256], 23, vec![0; 136]), "has type IQ4_XS; expected F32"),
        (tiny().tensor("x", &[32], 9, vec![0; 36]), "Q8_1"),
        (tiny().tensor("x", &[32], 777, vec![0; 36]), "number 777"),
        (Writer { shifts: vec![4, 0], ..tiny() }, "a multiple of 32"),
        (Writer { shifts: vec![32, 0], ..tiny() }, "tensors `norm` and `matrix` overlap"),
        (Writer { shifts: vec![0, 1 << 20], ..tiny() }, "truncated GGUF: tensor `matrix`"),
        (Writer { shifts: vec![0, 0_u64.wrapping_sub(64)], ..tiny() }, "truncated GGUF: tensor `matrix`"),
    ];
    for (writer, message) in cases {
        let found = fault(&writer.bytes()).to_string();
        assert!(found.contains(message), "{found:?} instead of {message:?}");
    }
    let not_utf8 = Writer::new().raw("a", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]).bytes();
    let header = read(&not_utf8).unwrap();
    let error = header.metadata(Path::new("some.gguf"), &not_utf8).text("a").unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
    let mut bad_key = Writer::new().number("ab", 1).bytes();
    bad_key[32] = 0xff;
    assert!(fault(&bad_key).to_string().contains("UTF-8"));
}

#[test]
fn split_files_are_read_together() {
    let folder = tempfile::tempdir().unwrap();
    let part = |number: u32, count: u32| {
        let numbers = |writer: Writer| {
            let writer = writer.raw("split.no", 2, &(number as u16 - 1).to_le_bytes());
            writer.raw("split.count", 2, &(count as u16).to_le_bytes()).number("split.tensors.count", 3)
        };
        numbers(Writer::new()).f32s(&format!("t{number}"), &[2], |i| i as f32 + number as f32)
    };
    let path = |number: u32| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    for number in 1..=3 {
        std::fs::write(path(number), part(number, 3).bytes()).unwrap();
    }
    let file = GgufFile::open(&path(1)).unwrap();
    let names: Vec<&str> = file.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["t1", "t2", "t3"]);

    let refused = |path: &Path, message: &str| {
        let error = GgufFile::open(path).unwrap_err();
        assert!(matches!(error, CheckpointError::Gguf(_)) && error.to_string().contains(message), "{error}");
    };
    refused(&path(2), "it is one of 3 parts; give the first");
    std::fs::copy(path(1), folder.path().join("renamed.gguf")).unwrap();
    refused(&folder.path().join("renamed.gguf"), "keep the file names");
    std::fs::write(path(3), part(2, 3).bytes()).unwrap();
    refused(&path(1), "does not say that it is part 3 of 3");
    std::fs::write(path(3), part(3, 3).f32s("t1", &[1], |_| 0.0).bytes()).unwrap();
    refused(&path(1), "have 4 tensors");
    std::fs::remove_file(path(3)).unwrap();
    refused(&path(1), "part 3 of 3 is missing");
}

/// Parses a file. If it is accepted, reads all metadata and checks that every tensor is inside the file.
fn walk(file: &[u8]) {
    let Ok(header) = read(file) else { return };
    let metadata = header.metadata(Path::new("some.gguf"), file);
    for (key, value) in metadata.iter() {
        if let GgufValue::Array(array) = value {
            assert_eq!(array.iter().count(), array.len(), "{key}");
        }
    }
    for tensor in header.tensors() {
        assert!(tensor.range.end <= file.len(), "{}", tensor.name);
    }
}

proptest! {
    #[test]
    fn mutated_headers_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut file = tiny().bytes();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if is_cut {
            file.truncate(cut.index(file.len()));
        }
        walk(&file);
    }

    #[test]
    fn any_bytes_after_the_magic_number_never_panic(rest in prop::collection::vec(any::<u8>(), 0..200)) {
        walk(&[b"GGUF\x03\0\0\0".as_slice(), &rest].concat());
        let counts = [1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat();
        walk(&[b"GGUF\x03\0\0\0".as_slice(), &counts, &rest].concat());
    }
}
