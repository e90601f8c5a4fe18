//! Parses a PyTorch file.

use std::path::Path;

use super::error::{PickleError, PickleFault};
use super::tensor::PickleTensor;
use super::{machine, tensor, zip};

/// Lists the tensors of a PyTorch file in the order of its dictionary. `file` is the whole content of the file.
///
/// `path` is only used in error messages.
///
/// # Errors
/// [`PickleError`] if the file differs in any way from what `torch.save` writes for a dictionary of tensors.
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

/// Checks the container version. PyTorch reads versions 1 to 10 (`caffe2/serialize/versions.h`). The files of
/// `torch.save` are the same in all of them.
fn check_version(version: &[u8]) -> Result<(), PickleFault> {
    match std::str::from_utf8(version.trim_ascii()).map(str::parse::<u64>) {
        Ok(Ok(1..=10)) => Ok(()),
        _ => Err(PickleFault::Version { found: excerpt(version) }),
    }
}

/// Returns the first 40 bytes of a record as text, for an error message.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).trim().to_owned()
}
