//! Tests of PyTorch files: files of `torch.save` are read bit for bit, and every other file gives a typed error.

mod bombs;
mod good;
mod programs;
mod random;
mod views;
pub(crate) mod write;
mod zip;

use std::borrow::Cow;
use std::path::Path;

use idefics_checkpoint::pickle::{PickleFault, PickleTensor, parse};

/// Names of the valid test files, without folder and extension. `no_checksums` is tested separately.
pub(crate) const FIXTURES: [&str; 11] = [
    "dtypes",
    "new_dtypes",
    "views",
    "shapes",
    "state_dict",
    "data_parallel",
    "parameters",
    "protocol_3",
    "protocol_4",
    "protocol_5",
    "old_layout",
];

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pickle");
    std::fs::read(folder.join(name)).unwrap()
}

/// Parses a file. If it is accepted, checks that the file contains the bytes of every tensor.
fn read(file: &[u8]) -> Result<Vec<PickleTensor>, PickleFault> {
    let tensors = parse(Path::new("weights.bin"), file).map_err(|error| {
        assert!(error.to_string().starts_with("weights.bin: "), "{error}");
        error.fault
    })?;
    for tensor in &tensors {
        let bytes = tensor.bytes(file).expect("the tensor should be in the file");
        assert_eq!(bytes.len(), tensor.len_bytes(), "{tensor:?}");
        assert_eq!(tensor.is_contiguous(), matches!(bytes, Cow::Borrowed(_)), "{tensor:?}");
        assert!(!tensor.is_contiguous() || tensor.byte_range().len() == bytes.len(), "{tensor:?}");
    }
    Ok(tensors)
}

/// Returns the fault of a file that is expected to be rejected.
fn fault_of(file: &[u8]) -> PickleFault {
    read(file).expect_err("the file should be rejected")
}

/// Asserts that a fault has the given variant, and that its message contains all given words.
macro_rules! assert_fault {
    ($fault:expr, $variant:pat $(, $word:expr)*) => {{
        let fault: idefics_checkpoint::pickle::PickleFault = $fault;
        let message = fault.to_string();
        assert!(matches!(fault, $variant), "{fault:?}");
        $(assert!(message.contains($word), "{message:?} does not contain {:?}", $word);)*
        assert!(message.len() < 3000, "{message:?}");
    }};
}
use assert_fault;
