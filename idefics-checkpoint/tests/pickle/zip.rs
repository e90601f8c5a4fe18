//! Tests of archives that are truncated, inconsistent, or not written by `torch.save`.

use idefics_checkpoint::pickle::PickleFault;

use super::write::{Entry, dict, entries, floats, program, view, zip, zip_with};
use super::{FIXTURES, assert_fault, fault_of, fixture, read};

/// Builds the entries of a valid file with one tensor: `data.pkl`, `version` and `data/0`.
fn good() -> Vec<Entry> {
    entries(&program(dict(&[("w", view(floats(2), 0, &[2], &[1]))])), &[("0", &[0; 8])])
}

fn with(change: impl FnOnce(&mut Vec<Entry>)) -> Vec<u8> {
    let mut entries = good();
    change(&mut entries);
    zip(&entries)
}

#[test]
fn rejects_file_truncated_anywhere() {
    for name in FIXTURES {
        let file = fixture(&format!("{name}.bin"));
        for length in (0..file.len()).step_by(97).chain(file.len() - 100..file.len()) {
            assert_fault!(fault_of(&file[..length]), PickleFault::Truncated { .. }, &length.to_string(), "download");
        }
    }
}

#[test]
fn rejects_bytes_before_and_after_the_archive() {
    let file = zip(&good());
    assert_fault!(fault_of(&[b"junk", &file[..]].concat()), PickleFault::NotZip { .. }, "zip archive", "safetensors");
    assert_fault!(fault_of(&[&file[..], b"junk"].concat()), PickleFault::Truncated { .. });
    assert_fault!(fault_of(&[&file[..], &file[..]].concat()), PickleFault::Zip { .. }, "does not end at");
    let twice = [&file[..file.len() - 22], &[0; 7], &file[file.len() - 22..]].concat();
    assert_fault!(fault_of(&twice), PickleFault::Zip { .. }, "does not end at");
    // The comment length is 4, with and without a comment of four bytes.
    let mut comment = [&file[..], b"note"].concat();
    comment[file.len() - 2] = 4;
    assert_fault!(fault_of(&comment), PickleFault::Truncated { .. });
    comment.truncate(file.len());
    assert_fault!(fault_of(&comment), PickleFault::Zip { .. }, "comment");
}

#[test]
fn recognises_other_kinds_of_files() {
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00(";
    assert_fault!(fault_of(legacy), PickleFault::Legacy, "1.6", "convert", "safetensors");
    let framed = b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x04M\xe9\x03.";
    assert_fault!(fault_of(framed), PickleFault::Legacy, "convert");
    for start in
        [b"\x80\x02}q\0.".as_slice(), b"\x28\0\0\0\0\0\0\0{\"w\"", b"PK\x05\x06", &[0; 100], b"version https://git-lfs"]
    {
        assert_fault!(fault_of(start), PickleFault::NotZip { .. }, "not a PyTorch file", "convert");
    }
    for name in ["archive/constants.pkl", "archive/code/__torch__.py"] {
        let script = with(|entries| entries.push(Entry::new(name, b"")));
        assert_fault!(fault_of(&script), PickleFault::TorchScript, "state_dict");
    }
    let empty = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_fault!(fault_of(empty), PickleFault::NotZip { .. });
}

#[test]
fn rejects_missing_and_unused_entries() {
    let missing = |at: usize| fault_of(&with(|entries| drop(entries.remove(at))));
    assert_fault!(missing(0), PickleFault::EntryMissing { .. }, "data.pkl");
    assert_fault!(missing(1), PickleFault::EntryMissing { .. }, "version");
    assert_fault!(missing(2), PickleFault::StorageMissing { .. }, "\"w\"", "data/0");
    let renamed = with(|entries| entries[2] = Entry::new("archive/data/00", &[0; 8]));
    assert_fault!(fault_of(&renamed), PickleFault::StorageMissing { .. }, "data/0");
    let extra = with(|entries| entries.push(Entry::new("archive/data/1", b"lost")));
    assert_fault!(fault_of(&extra), PickleFault::StorageUnused { count: 1, .. }, "data/1");
    assert_eq!(
        read(&with(|entries| entries.push(Entry::new("archive/.data/serialization_id", b"1")))).unwrap().len(),
        1
    );
}

#[test]
fn rejects_unsafe_entry_names() {
    for name in [
        "../w",
        "archive/../w",
        "archive/data/../../w",
        "/archive/w",
        "//w",
        "archive//w",
        "archive/",
        "archive/./w",
        "archive/..",
        "..",
        "archive\\w",
        "archive/..\\w",
        "C:/w",
        "archive/C:w",
        "archive/w\0",
        "archive/\nw",
        "w",
        "",
    ] {
        let file = with(|entries| entries.push(Entry::new(name, b"")));
        assert_fault!(fault_of(&file), PickleFault::EntryName { .. }, "expected `folder/name`");
    }
    let latin = with(|entries| {
        entries[2].name = b"archive/data/\xe9".to_vec();
        entries[2].local_name = entries[2].name.clone();
    });
    assert_fault!(fault_of(&latin), PickleFault::EntryName { .. }, "UTF-8");
    let long = with(|entries| entries.push(Entry::new(&format!("archive/{}", "w".repeat(2000)), b"")));
    assert_fault!(fault_of(&long), PickleFault::Limit { .. }, "2008 bytes", "1024");
    let folders = with(|entries| entries.push(Entry::new("other/w", b"")));
    assert_fault!(fault_of(&folders), PickleFault::Zip { .. }, "other", "archive");
}

#[test]
fn rejects_duplicate_entries() {
    for again in 0..3 {
        let file = with(|entries| entries.push(entries[again].clone()));
        assert_fault!(fault_of(&file), PickleFault::DuplicateEntry { .. }, "twice");
    }
}

#[test]
fn rejects_encrypted_and_compressed_entries() {
    for at in 0..3 {
        for (flags, word) in [(1, "encrypted"), (1 << 6 | 1, "encrypted"), (1 << 13, "encrypted"), (1 << 5, "0x0020")] {
            let file = with(|entries| entries[at].flags = flags);
            assert_fault!(fault_of(&file), PickleFault::EntryFeature { .. }, word, "torch.save");
        }
        for method in [8, 12, 14, 93, 99] {
            let file = with(|entries| entries[at].method = method);
            assert_fault!(fault_of(&file), PickleFault::EntryFeature { .. }, "compressed", &method.to_string());
        }
        let file = with(|entries| entries[at].sizes[0] += 1000);
        assert_fault!(fault_of(&file), PickleFault::EntryFeature { .. }, "stored in");
    }
}

#[test]
fn rejects_inconsistent_headers() {
    type Case = (&'static str, fn(&mut Entry));
    let faults: [Case; 10] = [
        ("disagrees", |entry| entry.local_name[9] ^= 1),
        ("disagrees", |entry| entry.local_size += 1),
        ("disagrees", |entry| entry.sizes = [7; 2]),
        ("disagrees", |entry| entry.sizes = [1 << 31; 2]),
        ("no local header", |entry| entry.local_at = Some(3)),
        ("no local header", |entry| entry.local_at = Some(u64::from(u32::MAX) - 1)),
        // A number whose bits are all ones refers to a 64-bit value, which is missing here.
        ("not an entry", |entry| entry.local_at = Some(u32::MAX.into())),
        ("not an entry", |entry| entry.sizes = [u32::MAX.into(); 2]),
        ("but only", |entry| (entry.sizes, entry.local_size) = ([1 << 31; 2], 1 << 31)),
        ("but only", |entry| {
            (entry.sizes, entry.local_size, entry.wide) = ([u64::MAX - 1; 2], u64::MAX - 1, true);
        }),
    ];
    for (word, change) in faults {
        let file = with(|entries| change(&mut entries[2]));
        assert_fault!(fault_of(&file), PickleFault::Zip { .. }, word);
    }
    // The header of the second entry is inside the data of the first.
    let inner = zip(&[Entry::new("archive/version", b"3\n")]);
    let overlap = with(|entries| {
        entries.push(Entry::new("archive/cover", &inner[..inner.len() - 22]));
        entries.swap(0, 3); // makes it the first entry, so that its offset is known
        entries[1].local_at = Some(30 + "archive/cover".len() as u64);
    });
    assert_fault!(fault_of(&overlap), PickleFault::Zip { .. }, "overlap");
}

#[test]
fn rejects_inconsistent_directories() {
    for wide in [false, true] {
        let count = |count| zip_with(&good(), wide, |end| end.count = count);
        assert_fault!(fault_of(&count(2)), PickleFault::Zip { .. }, "after the 2 entries");
        assert_fault!(fault_of(&count(4)), PickleFault::Zip { .. }, "not an entry");
        let place = |size, at| zip_with(&good(), wide, |end| (end.size, end.at) = (end.size + size, end.at + at));
        for (size, at) in [(1, 0), (0, 1), (1 << 31, 0), (1 << 31, 1 << 30)] {
            assert_fault!(fault_of(&place(size, at)), PickleFault::Zip { .. }, "does not end at");
        }
        let moved = zip_with(&good(), wide, |end| (end.size, end.at) = (end.size - 5, end.at + 5));
        assert_fault!(fault_of(&moved), PickleFault::Zip { .. }, "not an entry");
    }
    let huge = zip_with(&good(), true, |end| (end.size, end.at) = (u64::MAX - 5, u64::MAX - 5));
    assert_fault!(fault_of(&huge), PickleFault::Zip { .. }, "does not end at");
    let many = zip_with(&good(), true, |end| end.count = u64::MAX);
    assert_fault!(fault_of(&many), PickleFault::Limit { .. }, "zip entries", "100100");
}

#[test]
fn rejects_disagreeing_end_records() {
    let file = zip_with(&good(), true, |_| ());
    for from_end in [14, 12, 10, 6] {
        let mut file = file.clone();
        let at = file.len() - from_end;
        file[at] ^= 1;
        let fault = fault_of(&file);
        assert_fault!(fault, PickleFault::Zip { .. });
    }
    // Three faults: a locator with a wrong offset, a 64-bit end record with a wrong size, and a 64-bit end record with
    // a wrong directory offset.
    for (from_end, word) in [(22 + 12, "locator"), (22 + 20 + 52, "64-bit end"), (22 + 20 + 4, "64-bit end")] {
        let mut file = file.clone();
        let at = file.len() - from_end;
        file[at] ^= 1;
        assert_fault!(fault_of(&file), PickleFault::Zip { .. }, word);
    }
}

#[test]
fn rejects_wrong_checksums() {
    for (at, name) in [(0, "data.pkl"), (1, "version")] {
        let file = with(|entries| *entries[at].data.last_mut().unwrap() ^= 0x10);
        assert_fault!(fault_of(&file), PickleFault::Checksum { .. }, name, "download");
    }
}

#[test]
fn rejects_unknown_versions_and_byte_orders() {
    for version in ["0", "11", "-3", "", "three", "3 4", "99999999999999999999", "\u{ff13}"] {
        let file = with(|entries| entries[1] = Entry::new("archive/version", version.as_bytes()));
        assert_fault!(fault_of(&file), PickleFault::Version { .. }, "expected 1 to 10");
    }
    for order in ["big", "", "LITTLE", "littleendian"] {
        let file = with(|entries| entries.push(Entry::new("archive/byteorder", order.as_bytes())));
        assert_fault!(fault_of(&file), PickleFault::ByteOrder { .. }, "little-endian");
    }
    let long = with(|entries| entries[1] = Entry::new("archive/version", &[0xff; 100_000]));
    assert_fault!(fault_of(&long), PickleFault::Version { .. });
}

#[test]
fn enforces_size_and_entry_limits() {
    let program = with(|entries| entries[0] = Entry::new("archive/data.pkl", &vec![b'N'; (16 << 20) + 1]));
    assert_fault!(fault_of(&program), PickleFault::Limit { .. }, "16777217 bytes", "16777216");
    let entries: Vec<Entry> = (0..100_101).map(|index| Entry::new(&format!("a/{index}"), b"")).collect();
    let many = zip_with(&entries, true, |_| ());
    assert_fault!(fault_of(&many), PickleFault::Limit { .. }, "100101 zip entries", "100100");
}
