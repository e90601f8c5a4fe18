use std::path::PathBuf;

use safetensors::Dtype;

/// Advice on how to convert an old file. PyTorch itself can read more files than this reader.
macro_rules! convert_hint {
    () => {
        "convert it once with PyTorch: \
         safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")"
    };
}

/// The error for a PyTorch file that is rejected.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct PickleError {
    /// Path of the file.
    pub path: PathBuf,
    /// The fault in the file.
    pub fault: PickleFault,
}

/// What is wrong with a PyTorch file. Text from the file is quoted and cut to at most one kilobyte.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// The file has the format used before PyTorch 1.6: a sequence of pickles.
    #[error("uses the format from before PyTorch 1.6, which is not a zip archive; {}", convert_hint!())]
    Legacy,
    /// The file has neither PyTorch's zip format nor the format used before PyTorch 1.6.
    #[error("is not a PyTorch file: expected a zip archive, but it starts with {start:02x?}; {}", convert_hint!())]
    NotZip {
        /// The first four bytes.
        start: [u8; 4],
    },
    /// The file is a TorchScript archive, which contains code.
    #[error(
        "is a TorchScript program; expected a dictionary of tensors; \
         save the `state_dict()` of what `torch.jit.load` returns"
    )]
    TorchScript,
    /// The file does not end with a zip directory, most often because a download was interrupted.
    #[error("truncated: its {found} bytes do not end with a zip directory; download it again")]
    Truncated {
        /// Size of the file, in bytes.
        found: u64,
    },
    /// The zip structure is inconsistent, or different from what `torch.save` writes.
    #[error("zip archive, byte {at}: {reason}")]
    Zip {
        /// Offset of the fault in the file, in bytes.
        at: u64,
        /// What is wrong with the archive.
        reason: String,
    },
    /// An entry's name is not valid, or leads out of the archive's folder.
    #[error("zip entry {entry:?}: {reason}; expected `folder/name`")]
    EntryName {
        /// Name of the entry.
        entry: String,
        /// What is wrong with the name.
        reason: &'static str,
    },
    /// Two entries have the same name.
    #[error("zip entry {entry:?} occurs twice")]
    DuplicateEntry {
        /// Name of the entry, without the archive's folder.
        entry: String,
    },
    /// An entry is compressed, encrypted or otherwise not plain bytes.
    #[error("zip entry {entry:?} is {feature}, but PyTorch stores plain bytes; save the file again with torch.save")]
    EntryFeature {
        /// Name of the entry.
        entry: String,
        /// How the entry differs from plain bytes, for example `encrypted`.
        feature: String,
    },
    /// An entry that every PyTorch file has is missing.
    #[error("has no zip entry {entry:?}, so it was not written by torch.save")]
    EntryMissing {
        /// Name of the entry, without the archive's folder.
        entry: String,
    },
    /// The checksum of an entry is wrong.
    #[error("zip entry {entry:?} is corrupt: its checksum is {found:08x}; expected {expected:08x}; download it again")]
    Checksum {
        /// Name of the entry, without the archive's folder.
        entry: String,
        /// CRC-32 according to the zip directory.
        expected: u32,
        /// CRC-32 of the entry's bytes.
        found: u32,
    },
    /// The container version is unknown.
    #[error("the container version is {found:?}; expected 1 to 10; save the file again with a current PyTorch")]
    Version {
        /// Contents of the archive's `version` record.
        found: String,
    },
    /// The file was written on a big-endian machine.
    #[error("the byte order is {found:?}; expected \"little\"; save the file again on a little-endian machine")]
    ByteOrder {
        /// Contents of the archive's `byteorder` record.
        found: String,
    },
    /// A limit is exceeded.
    #[error("found {found} {what}; at most {limit} are allowed")]
    Limit {
        /// What is counted, with its unit.
        what: &'static str,
        /// The number found, or the count so far when the file was rejected.
        found: u64,
        /// The maximum.
        limit: u64,
    },
    /// The pickle program is malformed, or does something that `torch.save` does not write.
    #[error("data.pkl, byte {at}: {reason}")]
    Program {
        /// Offset in `data.pkl`, in bytes.
        at: u64,
        /// What is wrong with the program.
        reason: String,
    },
    /// The program has an opcode that a dictionary of tensors does not need.
    #[error(
        "data.pkl, byte {at}: opcode {name} ({opcode:#04x}) is not accepted; expected only a dictionary of tensors"
    )]
    Opcode {
        /// Offset in `data.pkl`, in bytes.
        at: u64,
        /// The opcode.
        opcode: u8,
        /// Name of the opcode in Python's `pickletools`.
        name: &'static str,
    },
    /// The program names something that is not on the allow-list.
    #[error(
        "data.pkl, byte {at}: the file uses {name:?} of the Python module {module:?}, which is not needed to read tensors \
         and is not allowed; save only the `state_dict`"
    )]
    Global {
        /// Offset in `data.pkl`, in bytes.
        at: u64,
        /// The Python module.
        module: String,
        /// The name in the module.
        name: String,
    },
    /// The program calls something other than an allowed constructor.
    #[error("data.pkl, byte {at}: calls {callee}; expected a tensor, a parameter or an OrderedDict")]
    Call {
        /// Offset in `data.pkl`, in bytes.
        at: u64,
        /// Description of the callee.
        callee: String,
    },
    /// A value is neither a tensor nor a dictionary of tensors.
    #[error("{name:?} is {found}; expected a tensor or a dictionary of tensors; save only the `state_dict`")]
    NotATensor {
        /// Name of the value: the dictionary keys that lead to it, joined by dots.
        name: String,
        /// The kind of value found.
        found: &'static str,
    },
    /// The file holds a single value instead of a dictionary.
    #[error("the file holds {found}; expected a dictionary of tensors; save the `state_dict`")]
    NotADictionary {
        /// The kind of value found.
        found: &'static str,
    },
    /// Two tensors have the same name, or the name of a nested tensor equals a key with dots.
    #[error("tensor {name:?} occurs twice")]
    DuplicateTensor {
        /// Name of the tensor.
        name: String,
    },
    /// The storage of a tensor is missing from the archive.
    #[error("tensor {name:?}: its storage \"data/{key}\" is not in the archive; download it again")]
    StorageMissing {
        /// Name of the tensor.
        name: String,
        /// Key of the storage: its entry is `data/<key>`.
        key: String,
    },
    /// The storage of a tensor is longer or shorter than the program claims.
    #[error("tensor {name:?}: its storage \"data/{key}\" has {found} bytes; expected {expected}")]
    StorageLength {
        /// Name of the tensor.
        name: String,
        /// Key of the storage: its entry is `data/<key>`.
        key: String,
        /// Size according to the program, in bytes.
        expected: u64,
        /// Size in the archive, in bytes.
        found: u64,
    },
    /// A storage is used with two element types.
    #[error("storage \"data/{key}\" is used as {first:?} and as {second:?}; expected one type (None is untyped bytes)")]
    StorageType {
        /// Key of the storage: its entry is `data/<key>`.
        key: String,
        /// The first type; `None` for untyped bytes.
        first: Option<Dtype>,
        /// The second type; `None` for untyped bytes.
        second: Option<Dtype>,
    },
    /// Some storages belong to no tensor.
    #[error("{} storages belong to no tensor of the dictionary, among them \"data/{first}\"", count)]
    StorageUnused {
        /// Number of storages that belong to no tensor.
        count: usize,
        /// Key of the first of these storages.
        first: String,
    },
    /// The shape, strides or offset of a tensor do not fit its storage.
    #[error("tensor {name:?}: {reason}")]
    View {
        /// Name of the tensor.
        name: String,
        /// What is wrong with the shape, strides or offset.
        reason: String,
    },
}
