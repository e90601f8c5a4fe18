use std::path::PathBuf;

use safetensors::Dtype;

/// What makes an old file readable; PyTorch itself reads more than is accepted here.
macro_rules! convert_hint {
    () => {
        "convert it once with PyTorch: \
         safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")"
    };
}

/// A PyTorch file that was refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct PickleError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: PickleFault,
}

/// What is wrong with a PyTorch file. Text that comes from the file is quoted and at most a kilobyte long.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// The layout from before PyTorch 1.6, a row of pickles.
    #[error("is in the layout from before PyTorch 1.6, which is not a zip archive; {}", convert_hint!())]
    Legacy,
    /// Neither the zip layout nor the one before it.
    #[error("is not a PyTorch file: expected a zip archive, the file starts with {start:02x?}; {}", convert_hint!())]
    NotZip {
        /// The first bytes.
        start: [u8; 4],
    },
    /// A program that was traced or scripted, with its code.
    #[error(
        "is a TorchScript program, expected a dictionary of tensors; \
         save the `state_dict()` of what `torch.jit.load` returns"
    )]
    TorchScript,
    /// No zip directory where the file ends: most often an interrupted download.
    #[error("truncated: no zip directory at the end of its {found} bytes; download it again")]
    Truncated {
        /// Bytes of the file.
        found: u64,
    },
    /// The zip structure contradicts itself, or is none that `torch.save` writes.
    #[error("zip archive, byte {at}: {reason}")]
    Zip {
        /// Byte of the file.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry's name would leave the archive's folder, or is not readable.
    #[error("zip entry {entry:?}: {reason}; expected `folder/name`")]
    EntryName {
        /// The entry.
        entry: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two entries of one name.
    #[error("zip entry {entry:?} is there twice")]
    DuplicateEntry {
        /// The entry, without the archive's folder.
        entry: String,
    },
    /// An entry is compressed, encrypted or otherwise not plain bytes.
    #[error(
        "zip entry {entry:?} is {feature}; PyTorch stores entries as they are, save the file again with torch.save"
    )]
    EntryFeature {
        /// The entry.
        entry: String,
        /// What it is.
        feature: String,
    },
    /// An entry that every PyTorch file has.
    #[error("has no zip entry {entry:?}, so it is not a file of torch.save")]
    EntryMissing {
        /// The entry, without the archive's folder.
        entry: String,
    },
    /// An entry is not what was written.
    #[error("zip entry {entry:?} is damaged: its checksum is {found:08x}, expected {expected:08x}; download it again")]
    Checksum {
        /// The entry, without the archive's folder.
        entry: String,
        /// Checksum by the zip directory.
        expected: u32,
        /// Checksum of the bytes.
        found: u32,
    },
    /// A container that is not known.
    #[error("container version {found:?}, expected 1 to 10")]
    Version {
        /// The content of `version`.
        found: String,
    },
    /// Written on a big-endian machine.
    #[error("byte order {found:?}, expected \"little\"; save the file again on a little-endian machine")]
    ByteOrder {
        /// The content of `byteorder`.
        found: String,
    },
    /// More of something than is accepted.
    #[error("{found} {what}, at most {limit} are accepted")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is, or has been counted up to the refusal.
        found: u64,
        /// How much is accepted.
        limit: u64,
    },
    /// The pickle program is malformed, or not one that `torch.save` writes.
    #[error("data.pkl, byte {at}: {reason}")]
    Program {
        /// Byte of `data.pkl`.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// An opcode that no dictionary of tensors needs.
    #[error(
        "data.pkl, byte {at}: opcode {name} ({opcode:#04x}) is not accepted: expected a dictionary of tensors alone"
    )]
    Opcode {
        /// Byte of `data.pkl`.
        at: u64,
        /// The opcode.
        opcode: u8,
        /// Its name in Python's `pickletools`.
        name: &'static str,
    },
    /// The program names something outside the allow-list.
    #[error("data.pkl, byte {at}: {module:?} {name:?} is not on the list of what a dictionary of tensors may name")]
    Global {
        /// Byte of `data.pkl`.
        at: u64,
        /// The Python module.
        module: String,
        /// The name in it.
        name: String,
    },
    /// The program calls something that is no constructor.
    #[error("data.pkl, byte {at}: calls {callee}, expected a tensor, a parameter or an OrderedDict")]
    Call {
        /// Byte of `data.pkl`.
        at: u64,
        /// What is called.
        callee: String,
    },
    /// Something else where a tensor or a dictionary of tensors was expected.
    #[error("{name:?} is {found}, expected a tensor or a dictionary of tensors; save the `state_dict` alone")]
    NotATensor {
        /// Where it is; empty for the file's outermost value.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// Two tensors of one name, or a nested name that equals a dotted one.
    #[error("tensor {name:?} is there twice")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor's storage is not in the archive.
    #[error("tensor {name:?}: its storage \"data/{key}\" is not in the archive; download it again")]
    StorageMissing {
        /// The tensor.
        name: String,
        /// The storage.
        key: String,
    },
    /// A tensor's storage is longer or shorter than the program says.
    #[error("tensor {name:?}: its storage \"data/{key}\" has {found} bytes, expected {expected}")]
    StorageLength {
        /// The tensor.
        name: String,
        /// The storage.
        key: String,
        /// Bytes by the program.
        expected: u64,
        /// Bytes in the archive.
        found: u64,
    },
    /// One storage is read as two types.
    #[error("storage \"data/{key}\" is read as {first:?} and as {second:?}, expected one type (None: bytes)")]
    StorageType {
        /// The storage.
        key: String,
        /// The first type; `None` for bytes.
        first: Option<Dtype>,
        /// The other.
        second: Option<Dtype>,
    },
    /// Storages that no name leads to.
    #[error("{} storages belong to no tensor of the dictionary, among them \"data/{first}\"", count)]
    StorageUnused {
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
    /// A tensor's shape, strides or offset do not fit its storage.
    #[error("tensor {name:?}: {reason}")]
    View {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
}
