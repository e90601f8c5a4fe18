//! From the bytes of a file to its tensors.

use std::path::Path;

use super::error::{PickleError, PickleFault};
use super::tensor::PickleTensor;
use super::{machine, tensor, zip};

/// Lists the tensors of `file`, the whole content of a PyTorch file, in the order that the program names them.
///
/// `path` is for the message of an error only.
///
/// # Errors
/// [`PickleError`] if the file is not, in every detail, what `torch.save` writes for a dictionary of tensors.
pub fn parse(path: &Path, file: &[u8]) -> Result<Vec<PickleTensor>, PickleError> {
    list_tensors(file).map_err(|fault| PickleError { path: path.to_owned(), fault })
}

fn list_tensors(file: &[u8]) -> Result<Vec<PickleTensor>, PickleFault> {
    let archive = zip::Archive::read(file)?;
    if archive.is_torch_script() {
        return Err(PickleFault::TorchScript);
    }
    check_version(archive.checked("version")?)?;
    if archive.has("byteorder") {
        let found = archive.checked("byteorder")?;
        if found.trim_ascii() != b"little" {
            return Err(PickleFault::ByteOrder { found: excerpt(found) });
        }
    }
    let program = archive.checked("data.pkl")?;
    let heap = machine::run(program)?;
    tensor::list(&heap, &archive)
}

/// PyTorch reads containers 1 to 10 (`caffe2/serialize/versions.h`); for `torch.save` they are all alike.
fn check_version(version: &[u8]) -> Result<(), PickleFault> {
    match std::str::from_utf8(version.trim_ascii()).map(str::parse::<u64>) {
        Ok(Ok(1..=10)) => Ok(()),
        _ => Err(PickleFault::Version { found: excerpt(version) }),
    }
}

/// The start of a text that should have been short.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).trim().to_owned()
}
