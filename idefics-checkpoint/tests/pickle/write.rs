//! Builds archives and programs in which any part may be wrong.

/// A zip entry whose headers may contradict its data.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    pub(crate) crc: u32,
    /// Size and packed size according to the directory.
    pub(crate) sizes: [u64; 2],
    /// Name in the local header.
    pub(crate) local_name: Vec<u8>,
    /// Size in the local header.
    pub(crate) local_size: u64,
    /// Offset of the local header according to the directory; `None` for the true offset.
    pub(crate) local_at: Option<u64>,
    /// Whether to write sizes and offset in their 64-bit form.
    pub(crate) wide: bool,
    /// Length of a hole after the data. The bytes of the hole are not written, but later offsets include them.
    pub(crate) hole: u64,
}

impl Entry {
    pub(crate) fn new(name: &str, data: &[u8]) -> Self {
        let size = data.len() as u64;
        Self {
            name: name.into(),
            data: data.to_vec(),
            flags: 0,
            method: 0,
            crc: crc32fast::hash(data),
            sizes: [size, size],
            local_name: name.into(),
            local_size: size,
            local_at: None,
            wide: false,
            hole: 0,
        }
    }
}

/// The fields of the end-of-directory records that a test may change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) count: u64,
    pub(crate) size: u64,
    pub(crate) at: u64,
}

/// Builds an archive with these entries.
pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    zip_with(entries, false, |_| ())
}

/// Builds an archive whose end records are modified by `change`. With `wide`, there is also a 64-bit end record.
pub(crate) fn zip_with(entries: &[Entry], wide: bool, change: impl FnOnce(&mut End)) -> Vec<u8> {
    zip_with_hole(entries, wide, change).0
}

/// Like [`zip_with`]. Also returns the offset in the result at which the hole belongs.
pub(crate) fn zip_with_hole(entries: &[Entry], wide: bool, change: impl FnOnce(&mut End)) -> (Vec<u8>, usize) {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let (mut hole_at, mut hole) = (0, 0);
    for entry in entries {
        let at = file.len() as u64 + hole;
        append(&mut file, &[0x0403_4b50, 0], 4);
        file.truncate(file.len() - 2); // a local header has one version field, and a directory entry has two
        append(&mut file, &[entry.flags.into(), entry.method.into(), 0, 0], 2);
        append(&mut file, &[entry.crc.into()], 4);
        let extra = append_sizes(&mut file, &[entry.local_size; 2], &[], entry.wide);
        append(&mut file, &[entry.local_name.len() as u64, extra.len() as u64], 2);
        file.extend([&entry.local_name[..], &extra, &entry.data].concat());
        if entry.hole > 0 {
            (hole_at, hole) = (file.len(), entry.hole);
        }

        append(&mut directory, &[0x0201_4b50, 0], 4);
        append(&mut directory, &[entry.flags.into(), entry.method.into(), 0, 0], 2);
        append(&mut directory, &[entry.crc.into()], 4);
        let [size, packed] = entry.sizes;
        let at = entry.local_at.unwrap_or(at);
        let extra = append_sizes(&mut directory, &[packed, size], &[at], entry.wide);
        append(&mut directory, &[entry.name.len() as u64, extra.len() as u64, 0, 0, 0, 0, 0], 2);
        append(&mut directory, &[if entry.wide { u32::MAX.into() } else { at }], 4);
        directory.extend([&entry.name[..], &extra].concat());
    }
    let count = entries.len() as u64;
    let mut end = End { count, size: directory.len() as u64, at: file.len() as u64 + hole };
    file.extend(directory);
    change(&mut end);
    if wide {
        let record_at = file.len() as u64;
        append(&mut file, &[0x0606_4b50], 4);
        append(&mut file, &[44, 0, 0, end.count, end.count, end.size, end.at], 8);
        file.drain(record_at as usize + 16..record_at as usize + 20); // version and disk fields are narrower than 8 bytes
        append(&mut file, &[0x0706_4b50, 0], 4);
        append(&mut file, &[record_at + hole], 8);
        append(&mut file, &[1], 4);
    }
    append(&mut file, &[0x0605_4b50, 0], 4);
    append(&mut file, &[end.count.min(0xffff); 2], 2);
    append(&mut file, &[end.size.min(0xffff_ffff), end.at.min(0xffff_ffff)], 4);
    append(&mut file, &[0], 2);
    (file, hole_at)
}

/// Appends the packed size and the size. With `wide`, appends all ones instead, and returns an extra field with the
/// sizes and the numbers `more`.
fn append_sizes(bytes: &mut Vec<u8>, [packed, size]: &[u64; 2], more: &[u64], wide: bool) -> Vec<u8> {
    if !wide {
        append(bytes, &[*packed, *size], 4);
        return Vec::new();
    }
    append(bytes, &[u32::MAX.into(), u32::MAX.into()], 4);
    let mut extra = Vec::new();
    append(&mut extra, &[0x4246, 3], 2); // PyTorch's padding
    extra.extend(b"ZZZ");
    append(&mut extra, &[1, 16 + 8 * more.len() as u64], 2);
    append(&mut extra, &[*size, *packed], 8);
    append(&mut extra, more, 8);
    extra
}

/// Appends the low `width` bytes of each number.
fn append(bytes: &mut Vec<u8>, numbers: &[u64], width: usize) {
    numbers.iter().for_each(|number| bytes.extend(&number.to_le_bytes()[..width]));
}

/// Builds the entries of a file with the given program and storages.
pub(crate) fn entries(program: &[u8], storages: &[(&str, &[u8])]) -> Vec<Entry> {
    let mut entries = vec![Entry::new("archive/data.pkl", program), Entry::new("archive/version", b"3\n")];
    entries.extend(storages.iter().map(|(key, data)| Entry::new(&format!("archive/data/{key}"), data)));
    entries
}

/// Builds a file whose program returns `value`.
pub(crate) fn file(value: Vec<u8>, storages: &[(&str, &[u8])]) -> Vec<u8> {
    zip(&entries(&program(value), storages))
}

pub(crate) fn program(value: Vec<u8>) -> Vec<u8> {
    [b"\x80\x02".as_slice(), &value, b"."].concat()
}

pub(crate) fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &value.to_le_bytes()].concat()
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

pub(crate) fn tuple(values: &[Vec<u8>]) -> Vec<u8> {
    [b"(".as_slice(), &values.concat(), b"t"].concat()
}

pub(crate) fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().copied().map(int).collect::<Vec<_>>())
}

pub(crate) fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items = items.iter().map(|(key, value)| [text(key), value.clone()].concat()).collect::<Vec<_>>().concat();
    [b"}(".as_slice(), &items, b"u"].concat()
}

pub(crate) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// Builds code that calls `callee` with `values`.
pub(crate) fn call(callee: Vec<u8>, values: &[Vec<u8>]) -> Vec<u8> {
    [callee, tuple(values), b"R".to_vec()].concat()
}

pub(crate) fn no_hooks() -> Vec<u8> {
    call(global("collections", "OrderedDict"), &[])
}

pub(crate) const FALSE: &[u8] = b"\x89";

pub(crate) fn storage(class: &str, key: &str, len: i64) -> Vec<u8> {
    let module = if class == "UntypedStorage" { "torch.storage" } else { "torch" };
    let id = tuple(&[text("storage"), global(module, class), text(key), text("cpu"), int(len)]);
    [id, b"Q".to_vec()].concat()
}

/// Builds code for a tensor that is a view of a storage, as PyTorch writes it.
pub(crate) fn view(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let rebuild = global("torch._utils", "_rebuild_tensor_v2");
    call(rebuild, &[storage, int(offset), ints(shape), ints(strides), FALSE.to_vec(), no_hooks()])
}

/// Builds code for the storage "0" with `len` f32 elements.
pub(crate) fn floats(len: i64) -> Vec<u8> {
    storage("FloatStorage", "0", len)
}
